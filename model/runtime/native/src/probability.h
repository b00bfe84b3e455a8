// Probabilities of tokens in float64. The functions are compiled for every instruction set, with equal bits: plain
// data only, as in types.h.
#pragma once
#include <stdint.h>

namespace aft {

// log(sum(exp(logits))) and the largest logit: a token's log-probability is logit - largest - log_sum.
struct Normaliser {
    double largest, log_sum;
};
// static: a shared copy might be the one that was compiled for a processor that is not here
static inline double logprob(const Normaliser& n, float logit) { return (double(logit) - n.largest) - n.log_sum; }
using Normalise = Normaliser (*)(const float* logits, int32_t count);

// exp((scores - largest) / temperature), in place.
using Weigh = void (*)(double* scores, int32_t count, double largest, double temperature);

// Adds masses to the probabilities of n different tokens, in their logits; the sum is no longer 1. ``mass`` is read in
// whole vectors of 8.
using Add = void (*)(float* logits, int32_t count, const int32_t* tokens, const double* mass, int32_t n);

struct Probability {
    Normalise normalise;
    Weigh weigh;
    Add add;
};

}  // namespace aft
