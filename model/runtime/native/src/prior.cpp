#include "prior.h"

#include <algorithm>

namespace aft {
namespace {

constexpr double UNIT = 65536.0;

uint64_t finish(uint64_t x) {
    x = (x ^ (x >> 33)) * 0xFF51AFD7ED558CCDull;
    x = (x ^ (x >> 33)) * 0xC4CEB9FE1A85EC53ull;
    return x ^ (x >> 33);
}

}  // namespace

void Recent::push(int32_t token) {
    for (int32_t i = MAX_PRIOR_ORDER - 1; i > 0; --i) tokens[i] = tokens[i - 1];
    tokens[0] = token;
    count = std::min(count + 1, MAX_PRIOR_ORDER);
}

int64_t Prior::bytes() const {
    return int64_t(gates.size() * 4 + alphabet.size() * 4 + keys.size() * 12 + letters.size() * 3);
}

int64_t Prior::find(const Recent& recent, int32_t length) const {
    uint64_t hash = uint64_t(length) + 1;
    for (int32_t i = 0; i < length; ++i) hash = hash * 0x9E3779B97F4A7C15ull + uint64_t(recent.tokens[i]) + 1;
    hash = finish(hash);
    const uint64_t mask = keys.size() - 1;
    const uint32_t key = std::max(uint32_t(hash >> 32), uint32_t(1));
    for (uint64_t place = hash & mask; keys[place]; place = (place + 1) & mask)
        if (keys[place] == key) return int64_t(place);
    return -1;
}

void Prior::mix(const Probability& probability, float* logits, int32_t vocab, const Recent& recent,
                std::vector<double>& scratch) const {
    const int32_t known = int32_t(alphabet.size()), padded = (known + 7) / 8 * 8;
    scratch.assign(2 * padded, 0.0);
    double* q = scratch.data();
    int32_t longest = 0;
    const int32_t most = std::min(int32_t(gates.size()) - 1, recent.count);
    for (int32_t length = 0; length <= most; ++length) {
        const int64_t place = find(recent, length);
        if (place < 0) break;
        longest = length;
        const double keep = left[place] / UNIT;
        for (int32_t i = 0; i < padded; ++i) q[i] = q[i] * keep;
        for (uint32_t e = first[place]; e < first[place] + count[place]; ++e)
            q[letters[e]] = q[letters[e]] + shares[e] / UNIT;
    }
    probability.blend(logits, vocab, alphabet.data(), known, q, gates[longest], q + padded);
}

}  // namespace aft
