#ifndef AFT_TARGET
#error "compile with -DAFT_TARGET=name"
#endif

#include "types.h"

namespace aft::AFT_TARGET {
namespace {

typedef uint16_t H __attribute__((vector_size(64)));
typedef uint16_t Hu __attribute__((vector_size(64), aligned(2)));
typedef uint64_t L __attribute__((vector_size(64)));
constexpr int32_t WIDE = 32;

H load(const uint16_t* p) { return *reinterpret_cast<const Hu*>(p); }

bool any(H lanes) {
    const L words = (L)lanes;
    uint64_t all = 0;
    for (int i = 0; i < 8; ++i) all |= words[i];
    return all != 0;
}

}  // namespace

int32_t search(const uint16_t* tokens, int32_t count, int32_t length, int32_t most, int32_t* places) {
    int32_t found = 0, end = count;
    const uint16_t* now = tokens + count;
    while (end - WIDE >= length && found < most) {
        const int32_t first = end - WIDE;
        H same = ~H{};
        for (int32_t age = 1; age <= length; ++age) same &= (H)(load(tokens + first - age) == now[-age]);
        for (int32_t lane = WIDE - 1; any(same) && lane >= 0 && found < most; --lane)
            if (same[lane]) places[found++] = first + lane;
        end = first;
    }
    for (int32_t place = end - 1; place >= length && found < most; --place) {
        int32_t age = 1;
        while (age <= length && tokens[place - age] == now[-age]) ++age;
        if (age > length) places[found++] = place;
    }
    return found;
}

}  // namespace aft::AFT_TARGET
