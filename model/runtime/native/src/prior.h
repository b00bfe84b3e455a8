// A frozen n-gram prior: model/prior.py in C++, the same formula; here one order of operations, so one set of bits.
#pragma once
#include <cstdint>
#include <vector>

#include "probability.h"

namespace aft {

constexpr int32_t MAX_PRIOR_ORDER = 8;

// The last tokens of a stream, the newest first.
struct Recent {
    int32_t count = 0;
    int32_t tokens[MAX_PRIOR_ORDER] = {};
    void push(int32_t token);
};

// The columns of a stored prior. Offsets are checked where it is loaded.
struct Prior {
    std::vector<float> gates;       // by the length of the longest context that was seen; empty: no prior
    std::vector<int32_t> alphabet;  // the tokens that it knows
    std::vector<uint32_t> keys, first;
    std::vector<uint16_t> count, left;
    std::vector<uint8_t> letters;
    std::vector<uint16_t> shares;

    explicit operator bool() const { return !gates.empty(); }
    int64_t bytes() const;
    // Logits of the network and of the prior together, in place. ``scratch`` is reused memory.
    void mix(const Probability& probability, float* logits, int32_t vocab, const Recent& recent,
             std::vector<double>& scratch) const;

private:
    int64_t find(const Recent& recent, int32_t length) const;
};

}  // namespace aft
