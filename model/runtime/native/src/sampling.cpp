#include "sampling.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

namespace aft {
namespace {

typedef double D __attribute__((vector_size(64)));
typedef int64_t L __attribute__((vector_size(64)));
typedef double Du __attribute__((vector_size(64), aligned(8)));
constexpr int WIDE = 8;
constexpr double NEVER = -100.0;  // a bias so low means never, however large the logit

// exp(x) for x <= 0 and a little above, to the last bits: n ln 2 is taken off in two parts, then a Taylor series. No libm:
// its last bits differ between machines.
D exp(D x) {
    D clipped = x < -700.0 ? D{} - 700.0 : x;
    clipped = clipped > 700.0 ? D{} + 700.0 : clipped;
    const double magic = 6755399441055744.0;  // 1.5 * 2^52
    const D shifted = clipped * 1.4426950408889634 + magic;
    const D n = shifted - magic;
    const D r = (clipped - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
    D p = D{} + 1.0 / 6227020800.0;
    constexpr double inverse[] = {1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0, 1.0 / 40320.0,
                                  1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0};
    for (double c : inverse) p = p * r + c;
    const L whole = (L)shifted - std::bit_cast<int64_t>(magic);
    const D y = (D)((L)p + (whole << 52));
    return x < -700.0 ? D{} : x == x ? y : x;
}

double exp(double x) { return exp(D{} + x)[0]; }

// log of positive numbers that are not denormal: Halley's iteration on exp.
D log(D x) {
    const L exponent = ((L)x >> 52) - 1023;
    D y;
    for (int i = 0; i < WIDE; ++i) y[i] = double(exponent[i]) * 0.6931471805599453;  // below by less than 0.7
    for (int i = 0; i < 4; ++i) {
        const D e = exp(y);
        y = y + 2.0 * (x - e) / (x + e);
    }
    // what is no number, infinite or 0 stays what it is, or becomes minus infinity
    y = x > 0.0 ? y : x == 0.0 ? D{} - INFINITY : D{} + NAN;
    return x < INFINITY ? y : x;
}

// exp((scores - largest) / temperature) in place.
void weights_of(double* scores, int32_t count, double largest, double temperature) {
    for (int32_t i = 0; i < count; i += WIDE) {
        if (i + WIDE <= count) {
            Du& at = *reinterpret_cast<Du*>(scores + i);
            at = exp((at - largest) / temperature);
        } else {
            for (int32_t j = i; j < count; ++j) scores[j] = exp((scores[j] - largest) / temperature);
        }
    }
}

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

double log(double x) { return log(D{} + x)[0]; }

void exp_all(double* x, int32_t count) {
    for (int32_t i = 0; i < count; i += WIDE) {
        D lanes{};
        const int32_t here = std::min(count - i, WIDE);
        for (int32_t j = 0; j < here; ++j) lanes[j] = x[i + j];
        lanes = exp(lanes);
        for (int32_t j = 0; j < here; ++j) x[i + j] = lanes[j];
    }
}

void log_all(double* x, int32_t count) {
    for (int32_t i = 0; i < count; i += WIDE) {
        D lanes = D{} + 1.0;
        const int32_t here = std::min(count - i, WIDE);
        for (int32_t j = 0; j < here; ++j) lanes[j] = x[i + j];
        lanes = log(lanes);
        for (int32_t j = 0; j < here; ++j) x[i + j] = lanes[j];
    }
}

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

Normaliser normaliser(const float* logits, int32_t count) {
    double largest = logits[0];
    for (int32_t i = 1; i < count; ++i) largest = logits[i] > largest ? double(logits[i]) : largest;
    D total{};
    for (int32_t i = 0; i < count; i += WIDE) {
        D lanes = D{} - INFINITY;
        for (int32_t j = i; j < count && j < i + WIDE; ++j) lanes[j - i] = double(logits[j]) - largest;
        total = total + exp(lanes);
    }
    for (int width = WIDE / 2; width; width /= 2)
        for (int i = 0; i < width; ++i) total[i] = total[i] + total[i + width];
    return {largest, log(total[0])};
}

int32_t draw(const float* logits, int32_t count, const Params& params, const Sampler& sampler, const int32_t* allowed,
             uint64_t position, std::vector<double>& scores) {
    scores.assign(logits, logits + count);
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
    weights_of(scores.data(), count, scores[best], params.temperature);
    if (params.top_k || params.top_p < 1 || params.min_p > 0) truncate(scores.data(), count, params);
    double total = 0;
    for (int32_t i = 0; i < count; ++i) scores[i] = total += scores[i];
    // the product may round up to the total, which no token reaches beyond
    const double target = std::min(uniform(params.seed, params.sample, position) * total, std::nextafter(total, 0.0));
    return int32_t(std::upper_bound(scores.begin(), scores.begin() + count, target) - scores.begin());
}

}  // namespace aft
