// The arithmetic that all targets share, on 16 lanes. Compiled once for each instruction set, in its own namespace.
//
// Every operation is one IEEE float32 operation a lane, in an order that the source fixes (the build forbids
// contraction here), so any instruction set gives the same bits. No libm, no approximate instructions.
#pragma once
#include "types.h"

#ifndef AFT_TARGET
#error "compile with -DAFT_TARGET=name"
#endif

namespace aft::AFT_TARGET {

typedef float F __attribute__((vector_size(64)));
typedef int32_t I __attribute__((vector_size(64)));
typedef uint32_t U __attribute__((vector_size(64)));
// the same, at any address
typedef float Fu __attribute__((vector_size(64), aligned(4)));
typedef uint32_t Uu __attribute__((vector_size(64), aligned(4)));

static inline F load(const float* p) { return *reinterpret_cast<const Fu*>(p); }
static inline U load(const uint32_t* p) { return *reinterpret_cast<const Uu*>(p); }
static inline void store(float* p, F x) { *reinterpret_cast<Fu*>(p) = x; }
static inline void store(uint32_t* p, U x) { *reinterpret_cast<Uu*>(p) = x; }
static inline F all(float x) { return F{} + x; }

static inline F larger(F a, F b) { return a > b ? a : b; }
static inline F absolute(F x) { return (F)((U)x & 0x7fffffffu); }

// To the nearest integer, ties to even, for |x| < 2^22; beyond that some integer near x.
static inline F nearest(F x) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: the sum has no room for a fraction
    return (x + magic) - magic;
}

// 2^n for whole n: 0 below -126, 2^127 above.
static inline F power_of_two(F n) {
    F clipped = n > 127.0f ? all(127.0f) : n;
    clipped = clipped < -127.0f ? all(-127.0f) : clipped;
    const float magic = 12582912.0f;
    I whole = (I)(clipped + magic) - (I)all(magic);
    return (F)((U)(whole + 127) << 23);
}

// 2^x: relative error below 2e-7 for -100 <= x <= 126; 0 below, 2^126 above, NaN for NaN.
static inline F exp2(F x) {
    F clipped = x > 126.0f ? all(126.0f) : x;
    clipped = clipped < -100.0f ? all(-100.0f) : clipped;
    F n = nearest(clipped);
    F f = clipped - n;  // -0.5 ... 0.5
    // the Taylor series of 2^f: what is left out is below 2^-27 there
    F p = all(1.5252734e-5f);
    p = p * f + 1.5403530e-4f;
    p = p * f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    F y = p * power_of_two(n);
    y = x < -100.0f ? F{} : y;
    return x == x ? y : x;
}

constexpr float LOG2E = 1.44269504f;

static inline F exp(F x) { return exp2(x * LOG2E); }
static inline F sigmoid(F x) { return 1.0f / (1.0f + exp(-x)); }

// Rounded to bf16, to nearest even, as a float32 whose low half is 0; |x| below ``least`` becomes 0.
static inline F rounded(F x, float least) {
    U bits = (U)x;
    bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
    return absolute(x) < least ? F{} : (F)bits;
}

// What a matrix product reads: so that neither a product nor a partial sum is ever denormal.
static inline F rounded_input(F x) { return rounded(x, 8.8817842e-16f); }  // 2^-50

constexpr float LEAST_STATE = 7.8886091e-31f;  // 2^-100: what is smaller counts for nothing beside its frame
static inline F kept(F x) { return absolute(x) < LEAST_STATE ? F{} : x; }

// The sum of the lanes by a fixed tree: halves, quarters, pairs.
static inline float sum(F x) {
    float lanes[LANES];
    store(lanes, x);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    return lanes[0];
}

static inline bool any(I mask) {
    typedef uint64_t Q __attribute__((vector_size(64)));
    Q q = (Q)mask;
    return (q[0] | q[1] | q[2] | q[3] | q[4] | q[5] | q[6] | q[7]) != 0;
}

}  // namespace aft::AFT_TARGET
