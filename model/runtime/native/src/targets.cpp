// Which instruction sets this build has, and which of them this processor can run.
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime.h"

namespace aft {

#if defined(__x86_64__)
namespace avx512bf16 { extern const Target target; }
namespace avx512 { extern const Target target; }
namespace avx2 { extern const Target target; }
namespace sse2 { extern const Target target; }
#else
namespace portable { extern const Target target; }
#endif

namespace {

// The best first.
std::vector<const Target*> usable() {
#if defined(__x86_64__)
    std::vector<const Target*> found;
    __builtin_cpu_init();
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
    // AMD's multiply twice as much by it, Intel's no more
    const bool by_pairs = __builtin_cpu_is("amd");
    if (bf16 && by_pairs) found.push_back(&avx512bf16::target);
    if (avx512) found.push_back(&avx512::target);
    if (bf16 && !by_pairs) found.push_back(&avx512bf16::target);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2::target);
    found.push_back(&sse2::target);
    return found;
#else
    return {&portable::target};
#endif
}

}  // namespace

std::vector<std::string> usable_targets() {
    std::vector<std::string> names;
    for (const Target* target : usable()) names.emplace_back(target->name);
    return names;
}

const Target& choose_target(const std::string& name) {
    std::string known;
    for (const Target* target : usable()) {
        if (name.empty() || name == target->name) return *target;
        known += (known.empty() ? "" : ", ") + std::string(target->name);
    }
    throw std::invalid_argument("instruction set '" + name + "' is not available here; available: " + known);
}

}  // namespace aft
