#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace aft {
namespace {

constexpr double NEVER = -100.0;  // a bias so low means never, however large the logit

void penalise(double* scores, int32_t count, const Params& params, const Sampler& sampler) {
    if (params.repetition_penalty != 1.0) {
        const double up = 1 / params.repetition_penalty, down = params.repetition_penalty;
        for (int32_t i = 0; i < count; ++i)
            if (sampler.seen[i]) scores[i] = scores[i] * (scores[i] > 0 ? up : down);
    }
    if (params.frequency_penalty != 0 || params.presence_penalty != 0)
        for (int32_t i = 0; i < count; ++i)
            scores[i] = scores[i] - params.frequency_penalty * sampler.counts[i] -
                        params.presence_penalty * (sampler.counts[i] > 0);
    for (auto [token, bias] : params.logit_bias) scores[token] = bias <= NEVER ? -INFINITY : scores[token] + bias;
}

// Set to 0 what top-k, top-p and min-p cut.
void truncate(double* weights, int32_t count, const Params& params) {
    std::vector<int32_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return weights[a] > weights[b]; });
    std::vector<double> ranked(count);
    std::vector<uint8_t> keep(count);
    for (int32_t i = 0; i < count; ++i) {
        ranked[i] = weights[order[i]];
        keep[i] = ranked[i] > 0 && (!params.top_k || i < params.top_k);
    }
    if (params.top_p < 1) {
        double total = 0, before = 0;
        for (int32_t i = 0; i < count; ++i) total += keep[i] ? ranked[i] : 0;
        for (int32_t i = 0; i < count; ++i) {
            before += keep[i] ? ranked[i] : 0;
            keep[i] = keep[i] && before - ranked[i] < params.top_p * total;
        }
    }
    if (params.min_p > 0)
        for (int32_t i = 0; i < count; ++i) keep[i] = keep[i] && ranked[i] >= params.min_p * ranked[0];
    for (int32_t i = 1; i < count; ++i)
        if (!keep[i]) weights[order[i]] = 0;
}

}  // namespace

void philox(uint32_t c[4], uint32_t k, uint32_t m) {
    for (int i = 0; i < 10; ++i) {
        const uint64_t left = uint64_t(0xD2511F53) * c[0], right = uint64_t(0xCD9E8D57) * c[2];
        const uint32_t a = uint32_t(right >> 32) ^ c[1] ^ k, b = uint32_t(left >> 32) ^ c[3] ^ m;
        c[0] = a, c[1] = uint32_t(right), c[2] = b, c[3] = uint32_t(left);
        k += 0x9E3779B9, m += 0xBB67AE85;
    }
}

double uniform(uint64_t seed, uint32_t sample, uint64_t position) {
    uint32_t c[4] = {uint32_t(position), uint32_t(position >> 32), sample, 0};
    philox(c, uint32_t(seed), uint32_t(seed >> 32));
    return double(uint64_t(c[0]) << 21 | c[1] >> 11) * 0x1p-53;
}

int32_t draw(const Probability& probability, std::vector<double>& scores, const Params& params, const Sampler& sampler,
             const int32_t* allowed, uint64_t position) {
    const int32_t count = int32_t(scores.size());
    penalise(scores.data(), count, params, sampler);
    if (allowed)
        for (int32_t i = 0; i < count; ++i)
            if (allowed[i] < 0) scores[i] = -INFINITY;
    int32_t best = 0;
    for (int32_t i = 0; i < count; ++i) {
        if (scores[i] != scores[i]) return -1;  // logits that are no numbers
        if (scores[i] > scores[best]) best = i;
    }
    if (!std::isfinite(scores[best])) return -1;
    if (params.temperature == 0) return best;
    probability.weigh(scores.data(), count, scores[best], params.temperature);
    if (params.top_k || params.top_p < 1 || params.min_p > 0) truncate(scores.data(), count, params);
    double total = 0;
    for (int32_t i = 0; i < count; ++i) scores[i] = total += scores[i];
    // the product may round up to the total, which no token reaches beyond
    const double target = std::min(uniform(params.seed, params.sample, position) * total, std::nextafter(total, 0.0));
    const auto index = int32_t(std::upper_bound(scores.begin(), scores.end(), target) - scores.begin());
    return index < count ? index : -1;  // a total that is no number
}

}  // namespace aft
