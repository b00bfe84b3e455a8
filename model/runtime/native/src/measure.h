// What the machine can do at most, for the limits that `aft bench` prints.
#pragma once
#include <cstdint>
#include <string>

namespace aft {

// Bytes a second that ``threads`` threads read together from ``bytes`` of memory, again and again.
double bandwidth(const std::string& target, int threads, int64_t bytes);
// Floating-point operations a second of the kernel's own product, its data in the nearest cache.
double flops(const std::string& target, int threads);

}  // namespace aft
