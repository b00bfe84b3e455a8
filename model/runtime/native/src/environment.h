#pragma once
#include <stdint.h>

namespace aft::AFT_TARGET {

// The floating-point environment that the numbers are defined in: round to nearest, denormals as they are.
struct Environment {
#if defined(__x86_64__)
    unsigned int saved = __builtin_ia32_stmxcsr();
    Environment() { __builtin_ia32_ldmxcsr(0x1f80); }
    ~Environment() { __builtin_ia32_ldmxcsr(saved); }
#elif defined(__aarch64__)
    uint64_t saved;
    Environment() {
        asm volatile("mrs %0, fpcr" : "=r"(saved));
        asm volatile("msr fpcr, %0" : : "r"(uint64_t(0)));
    }
    ~Environment() { asm volatile("msr fpcr, %0" : : "r"(saved)); }
#endif
};

}  // namespace aft::AFT_TARGET
