#ifndef AFT_TARGET
#error "compile with -DAFT_TARGET=name"
#endif

#include "probability.h"

#include "environment.h"
#include "types.h"

namespace aft::AFT_TARGET {
namespace {

typedef double D __attribute__((vector_size(64)));
typedef int64_t L __attribute__((vector_size(64)));
typedef double Du __attribute__((vector_size(64), aligned(8)));
typedef float Half __attribute__((vector_size(32), aligned(4)));
constexpr int WIDE = 8;
constexpr double INFINITE = __builtin_inf(), MAGIC = 6755399441055744.0;  // 1.5 * 2^52

D all(double x) { return D{} + x; }
D load(const double* p) { return *reinterpret_cast<const Du*>(p); }
void store(double* p, D x) { *reinterpret_cast<Du*>(p) = x; }

// exp(x) for x <= 0 and a little above, to the last bits: n ln 2 is taken off in two parts, then a Taylor series. No
// libm: its last bits differ between machines.
D exp(D x) {
    D clipped = x < -700.0 ? all(-700.0) : x;
    clipped = clipped > 700.0 ? all(700.0) : clipped;
    const D shifted = clipped * 1.4426950408889634 + MAGIC;
    const D n = shifted - MAGIC;
    const D r = (clipped - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
    D p = all(1.0 / 6227020800.0);
    constexpr double inverse[] = {1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0, 1.0 / 40320.0,
                                  1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0};
    for (double c : inverse) p = p * r + c;
    const L whole = (L)shifted - (L)all(MAGIC);
    const D y = (D)((L)p + (whole << 52));
    return x < -700.0 ? D{} : x == x ? y : x;
}

// log of positive numbers that are not denormal: Halley's iteration on exp.
D log(D x) {
    const L exponent = ((L)x >> 52) - 1023;
    D y = __builtin_convertvector(exponent, D) * 0.6931471805599453;  // below by less than 0.7
    for (int i = 0; i < 4; ++i) {
        const D e = exp(y);
        y = y + 2.0 * (x - e) / (x + e);
    }
    // what is no number, infinite or 0 stays what it is, or becomes minus infinity
    y = x > 0.0 ? y : x == 0.0 ? all(-INFINITE) : all(__builtin_nan(""));
    return x < INFINITE ? y : x;
}

// 8 logits from the i-th on; beyond the end what weighs nothing.
D logits_at(const float* logits, int32_t i, int32_t count) {
    if (i + WIDE <= count) return __builtin_convertvector(*reinterpret_cast<const Half*>(logits + i), D);
    D lanes = all(-INFINITE);
    for (int32_t j = i; j < count; ++j) lanes[j - i] = double(logits[j]);
    return lanes;
}

Normaliser normalise(const float* logits, int32_t count) {
    D most = logits_at(logits, 0, count);
    for (int32_t i = WIDE; i < count; i += WIDE) {
        const D lanes = logits_at(logits, i, count);
        most = lanes > most ? lanes : most;
    }
    double largest = most[0];
    for (int i = 1; i < WIDE; ++i) largest = most[i] > largest ? most[i] : largest;
    D total{};
    for (int32_t i = 0; i < count; i += WIDE) total = total + exp(logits_at(logits, i, count) - largest);
    for (int width = WIDE / 2; width; width /= 2)
        for (int i = 0; i < width; ++i) total[i] = total[i] + total[i + width];
    return {largest, log(all(total[0]))[0]};
}

void weigh(double* scores, int32_t count, double largest, double temperature) {
    int32_t i = 0;
    for (; i + WIDE <= count; i += WIDE) store(scores + i, exp((load(scores + i) - largest) / temperature));
    D lanes{};
    for (int32_t j = i; j < count; ++j) lanes[j - i] = scores[j];
    lanes = exp((lanes - largest) / temperature);
    for (int32_t j = i; j < count; ++j) scores[j] = lanes[j - i];
}

void add(float* logits, int32_t count, const int32_t* tokens, const double* mass, int32_t n) {
    const Normaliser own = normalise(logits, count);
    const double total = own.largest + own.log_sum;
    for (int32_t i = 0; i < n; i += WIDE) {
        D lanes = all(-INFINITE);
        for (int32_t j = i; j < n && j < i + WIDE; ++j) lanes[j - i] = logprob(own, logits[tokens[j]]);
        lanes = log(exp(lanes) + load(mass + i)) + total;
        for (int32_t j = i; j < n && j < i + WIDE; ++j) logits[tokens[j]] = float(lanes[j - i]);
    }
}

Normaliser guarded_normalise(const float* logits, int32_t count) {
    Environment environment;
    return normalise(logits, count);
}

void guarded_weigh(double* scores, int32_t count, double largest, double temperature) {
    Environment environment;
    weigh(scores, count, largest, temperature);
}

void guarded_add(float* logits, int32_t count, const int32_t* tokens, const double* mass, int32_t n) {
    Environment environment;
    add(logits, count, tokens, mass, n);
}

}  // namespace

extern const Probability probability;
const Probability probability = {guarded_normalise, guarded_weigh, guarded_add};

}  // namespace aft::AFT_TARGET
