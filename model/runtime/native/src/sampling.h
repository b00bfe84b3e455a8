// What a draw is: model/sampling.py in C++. Sums are in one order, and exp is our own (probability.h), so that all
// machines draw alike.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

#include "probability.h"

namespace aft {

struct Params {
    double temperature, top_p, min_p, frequency_penalty, presence_penalty, repetition_penalty;
    int64_t top_k;
    uint64_t seed;
    uint32_t sample;
    std::vector<std::pair<int32_t, double>> logit_bias;
};

// What a slot remembers: part of its state.
struct Sampler {
    std::vector<int32_t> counts;  // how often each token was drawn
    std::vector<uint8_t> seen;    // whether a token was consumed or drawn
    int32_t automaton_state = 0;
};

void philox(uint32_t counter[4], uint32_t k, uint32_t m);
double uniform(uint64_t seed, uint32_t sample, uint64_t position);

// One token from scores, which are changed, or -1 where none may be drawn. ``allowed``: the automaton's row, or null.
int32_t draw(const Probability& probability, std::vector<double>& scores, const Params& params, const Sampler& sampler,
             const int32_t* allowed, uint64_t position);

}  // namespace aft
