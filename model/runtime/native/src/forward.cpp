// One pass of many positions through the network: the recurrence of model/recurrent.py, fused.
//
// A thread owns channels. It projects, mixes and writes only those; what a product reads of others lies behind a
// barrier. Norms are computed by every thread for itself. No result depends on the number of threads or rows.
#include "environment.h"
#include "matmul.h"
#include "vector.h"

namespace aft::AFT_TARGET {
namespace {

struct Span {
    int32_t first, last;
    int32_t count() const { return last - first; }
};

Span share(int32_t count, const Team& team) {
    return {int32_t(int64_t(count) * team.thread / team.threads), int32_t(int64_t(count) * (team.thread + 1) / team.threads)};
}

F bf16(const uint16_t* p) {
    U bits;
    for (int i = 0; i < LANES; ++i) bits[i] = uint32_t(p[i]) << 16;
    return (F)bits;
}

// A block of a table row; what lies beyond the row's end is 0.
F table_block(const uint16_t* row, int32_t block, int32_t dim) {
    if ((block + 1) * LANES <= dim) return bf16(row + block * LANES);
    uint16_t lanes[LANES] = {};
    for (int i = block * LANES; i < dim; ++i) lanes[i - block * LANES] = row[i];
    return bf16(lanes);
}

void embed(const Model& m, const Row& row, Span blocks, float* x) {
    for (int32_t b = blocks.first; b < blocks.last; ++b) {
        F y = table_block(m.embed + int64_t(row.token) * m.dim, b, m.dim);
        if (m.embed_channel) {
            const int64_t place = row.position < m.raster_first ? 0 : row.position - m.raster_first;
            const int64_t pixel = place / m.raster_channels, channel = place % m.raster_channels;
            y = y + table_block(m.embed_channel + channel * m.dim, b, m.dim);
            y = y + table_block(m.embed_row + pixel / m.raster_width * m.dim, b, m.dim);
            y = y + table_block(m.embed_column + pixel % m.raster_width * m.dim, b, m.dim);
        }
        for (int32_t i = 0; i < m.lookbacks; ++i)
            if (row.before[i] >= 0) y = y + table_block(m.lookback[i] + int64_t(row.before[i]) * m.dim, b, m.dim);
        store(x + b * LANES, y);
    }
}

// LayerNorm of one row, rounded for the products. Sums run over 16 lanes, then a tree.
void normalise(const Model& m, const float* x, const float* weight, const float* bias, float* y) {
    const int32_t blocks = m.dim_blocks;
    F total{};
    for (int32_t b = 0; b < blocks; ++b) total = total + load(x + b * LANES);
    const float mean = sum(total) / float(m.dim);
    F squares{};
    for (int32_t b = 0; b < blocks; ++b) {
        F d = load(x + b * LANES) - mean;
        if ((b + 1) * LANES > m.dim)  // padding is no channel
            for (int i = m.dim - b * LANES; i < LANES; ++i) d[i] = 0;
        squares = squares + d * d;
    }
    const float variance = sum(squares) / float(m.dim);
    const float scale = 1.0f / __builtin_sqrtf(variance + 1e-5f);
    for (int32_t b = 0; b < blocks; ++b) {
        F d = load(x + b * LANES) - mean;
        store(y + b * LANES, rounded_input(d * scale * load(weight + b * LANES) + load(bias + b * LANES)));
    }
}

// The 16 words of a key in a ring: exp(k) above, exp(k) v below.
U pack(F e, F ev) {
    return (U)rounded(e, LEAST_STATE) | ((U)rounded(ev, LEAST_STATE) >> 16);
}
F upper(U word) { return (F)(word & 0xffff0000u); }
F lower(U word) { return (F)(word << 16); }

// Carry a block's state from one frame to another: a power of two, exact.
void reframe(uint32_t* ring, int32_t window, F scale, F& den, F& num) {
    for (int32_t j = 0; j < window; ++j) {
        U word = load(ring + j * LANES);
        store(ring + j * LANES, pack(upper(word) * scale, lower(word) * scale));
    }
    den = den * scale;
    num = num * scale;
}

struct BlockState {
    uint32_t* ring;
    float *den, *num, *peak;
};

// N blocks of one head (or, with a weight a channel, of any): consume a key, give back the weighted average where there
// is a place for it.
template <int N, bool BY_BLOCK>
void mix(const Layer& layer, int32_t window, int32_t oldest, const float* weights, int32_t block, const BlockState* at,
         const float* keys, const float* values, F* y) {
    F den_sum[N], num_sum[N];
    for (int n = 0; n < N; ++n) {
        const int32_t c = (block + n) * LANES;
        const F key = load(keys + n * LANES) * LOG2E, v = load(values + n * LANES);
        const F before = load(at[n].peak);
        const F peak = larger(before - load(layer.decay + c), key);
        const F old_frame = nearest(before * (1 / 64.0f)) * 64.0f, frame = nearest(peak * (1 / 64.0f)) * 64.0f;
        F den = load(at[n].den), num = load(at[n].num);
        if (any(frame != old_frame)) [[unlikely]]
            reframe(at[n].ring, window, power_of_two(old_frame - frame), den, num);
        const F e = exp2(key - frame);
        const F ev = e * v;
        const F shrink = load(layer.shrink + c), leave = load(layer.leave + c);
        F e_left = e, ev_left = ev;
        if (window) {
            uint32_t* place = at[n].ring + oldest * LANES;
            const U word = load(place);
            e_left = upper(word);
            ev_left = lower(word);
            store(place, pack(e, ev));
        }
        den = kept(den * shrink + e_left * leave);
        num = kept(num * shrink + ev_left * leave);
        store(at[n].peak, peak);
        store(at[n].den, den);
        store(at[n].num, num);
        den_sum[n] = den;
        num_sum[n] = num;
    }
    if (!y) return;
    // from the oldest to the newest: what stands behind the newest key's place, then what stands up to it
    const int32_t starts[2] = {oldest + 1, 0}, ends[2] = {window, window ? oldest + 1 : 0};
    for (int part = 0; part < 2; ++part) {
        for (int32_t j = starts[part]; j < ends[part]; ++j) {
            for (int n = 0; n < N; ++n) {
                const F weight = BY_BLOCK ? load(weights + n * int64_t(window) * LANES) : all(*weights);
                const U word = load(at[n].ring + j * LANES);
                den_sum[n] = den_sum[n] + upper(word) * weight;
                num_sum[n] = num_sum[n] + lower(word) * weight;
            }
            weights += BY_BLOCK ? LANES : 1;
        }
    }
    for (int n = 0; n < N; ++n) y[n] = num_sum[n] / den_sum[n];
}

template <int N, bool BY_BLOCK>
void mix_row(const Model& m, int32_t l, const Row& row, int32_t block, int32_t first, const float* q, const float* k,
             const float* v, float* mixed) {  // q and mixed: null where only the state is to go on
    const Layer& layer = m.layers[l];
    uint32_t* base = layer_state(m, row.state, l);
    float* sums = layer_sums(m, row.state, l);
    const int64_t padded = int64_t(m.dim_blocks) * LANES;
    BlockState at[N];
    for (int n = 0; n < N; ++n) {
        const int64_t c = int64_t(block + n) * LANES;
        at[n] = {base + c * m.window, sums + c, sums + padded + c, sums + 2 * padded + c};
    }
    const int64_t place = m.places == 1 ? 0 : row.position % m.places;
    const float* weights = layer.window;
    if (m.window) {
        if (BY_BLOCK)
            weights += (place * m.dim_blocks + block) * m.window * LANES;
        else
            weights += (place * m.heads + int64_t(block) * LANES * m.heads / m.dim) * m.window;
    }
    const int32_t oldest = m.window ? int32_t(row.position % m.window) : 0;
    F y[N];
    const int64_t own = int64_t(block - first) * LANES;
    mix<N, BY_BLOCK>(layer, m.window, oldest, weights, block, at, k + own, v + own, mixed ? y : nullptr);
    if (!mixed) return;
    for (int n = 0; n < N; ++n)
        store(mixed + (block + n) * LANES, rounded_input(sigmoid(load(q + own + n * LANES)) * y[n]));
}

// All rows; ``places`` says which of them stand in q and are to stand in ``mixed``, or is null: all do.
void mix_rows(const Model& m, int32_t l, const Pass& pass, const int32_t* places, Span own, const float* q,
              const float* k, const float* v, int64_t stride, float* mixed) {
    const int64_t padded = int64_t(m.dim_blocks) * LANES;
    const int32_t head_blocks = m.window_by_block ? 1 : m.dim / m.heads / LANES;
    int32_t number = 0;  // of the next one that is wanted
    for (int32_t r = 0; r < pass.count; ++r) {
        const bool wanted = !places || (number < pass.finished_count && places[number] == r);
        const float *qr = wanted ? q + number * stride : nullptr, *kr = k + r * stride, *vr = v + r * stride;
        float* out = wanted ? mixed + number * padded : nullptr;
        number += wanted;
        for (int32_t b = own.first; b < own.last;) {
            // two blocks of one head share its weights, and hide each other's latency
            const bool two = !m.window_by_block && b + 1 < own.last && b / head_blocks == (b + 1) / head_blocks;
            if (m.window_by_block)
                mix_row<1, true>(m, l, pass.rows[r], b, own.first, qr, kr, vr, out);
            else if (two)
                mix_row<2, false>(m, l, pass.rows[r], b, own.first, qr, kr, vr, out);
            else
                mix_row<1, false>(m, l, pass.rows[r], b, own.first, qr, kr, vr, out);
            b += two ? 2 : 1;
        }
    }
}

F activate(F x, int32_t activation) {
    if (activation == SQUARED_RELU) {
        F r = larger(x, F{});
        return r * r;
    }
    // GELU by its tanh, and tanh by exp
    const F u = 0.7978845608f * (x + 0.044715f * x * x * x);
    return 0.5f * x * (2.0f - 2.0f / (1.0f + exp(2.0f * u)));
}

// Add a product (and a bias) to the residual stream, for a thread's own blocks.
void add_rows(float* x, int64_t padded, Span own, int32_t rows, const float* y, int64_t stride, const float* bias) {
    for (int32_t r = 0; r < rows; ++r)
        for (int32_t b = own.first; b < own.last; ++b) {
            F more = load(y + r * stride + (b - own.first) * LANES);
            if (bias) more = more + load(bias + b * LANES);
            float* at = x + r * padded + b * LANES;
            store(at, load(at) + more);
        }
}

// Each row mixed with what stood before it: the row above, or what the state kept (its half of a word).
void shift_rows(const Model& m, int32_t l, const Row* rows, int32_t count, const float* shares, F (*half)(U),
                const float* normed, float* shifted) {
    const int64_t padded = int64_t(m.dim_blocks) * LANES;
    for (int32_t r = 0; r < count; ++r) {
        const bool first = r == 0 || rows[r - 1].state != rows[r].state;
        const uint32_t* kept = layer_shifted(m, rows[r].state, l);
        for (int64_t c = 0; c < padded; c += LANES) {
            const F x = load(normed + r * padded + c);
            const F before = first ? half(load(kept + c)) : load(normed + (r - 1) * padded + c);
            store(shifted + r * padded + c, rounded_input(before + load(shares + c) * (x - before)));
        }
    }
}

// Keep the last row of each stream for its next one, for a thread's own blocks: one half of each word.
void keep_rows(const Model& m, int32_t l, const Row* rows, int32_t count, Span own, bool upper_half,
               const float* normed) {
    const int64_t padded = int64_t(m.dim_blocks) * LANES;
    for (int32_t r = 0; r < count; ++r) {
        if (r + 1 < count && rows[r + 1].state == rows[r].state) continue;
        uint32_t* kept = layer_shifted(m, rows[r].state, l);
        for (int64_t c = int64_t(own.first) * LANES; c < int64_t(own.last) * LANES; c += LANES) {
            const F x = load(normed + r * padded + c);
            const U word = load(kept + c);
            store(kept + c, upper_half ? pack(x, lower(word)) : pack(upper(word), x));
        }
    }
}

// Moves the rows that go on to the front, some blocks of each.
void keep_finished(const Pass& pass, Span own, float* x, int64_t stride) {
    for (int32_t i = 0; i < pass.finished_count; ++i)
        for (int64_t c = int64_t(own.first) * LANES; c < int64_t(own.last) * LANES; c += LANES)
            store(x + i * stride + c, load(x + pass.places[i] * stride + c));
}

void forward(const Model& m, const Pass& pass, const Buffers& buffers, const Team& team) {
    const Row* rows = pass.rows;
    int32_t count = pass.count;
    const int64_t padded = int64_t(m.dim_blocks) * LANES, hidden = int64_t(m.hidden_blocks) * LANES;
    const Span own = share(m.dim_blocks, team), own_hidden = share(m.hidden_blocks, team);
    const Span own_vocab = share(m.vocab_blocks, team);
    const int64_t stride = int64_t(own.count()) * LANES;
    float* normed = buffers.scratch[team.thread];
    float* shifted = normed + count * padded;
    const float* read = m.token_shift ? shifted : normed;  // by the products
    float *q = shifted + pass.count * padded, *k = q + count * stride, *v = k + count * stride;
    for (int32_t r = 0; r < count; ++r) embed(m, rows[r], own, buffers.x + r * padded);
    team.barrier(team.pool);
    for (int32_t l = 0; l < m.num_layers; ++l) {
        const Layer& layer = m.layers[l];
        for (int32_t r = 0; r < count; ++r)
            normalise(m, buffers.x + r * padded, layer.norm_aft_weight, layer.norm_aft_bias, normed + r * padded);
        if (m.token_shift) shift_rows(m, l, rows, count, layer.shift_aft, upper, normed, shifted);
        matmul(layer.k, own.first, own.last, read, padded, count, k, stride);
        matmul(layer.v, own.first, own.last, read, padded, count, v, stride);
        const bool fewer = l + 1 == m.num_layers && pass.finished_count < count;
        if (fewer) {
            const Span whole = {0, m.dim_blocks};
            keep_finished(pass, whole, normed, padded);
            if (m.token_shift) keep_finished(pass, whole, shifted, padded);
            rows = pass.finished;
            count = pass.finished_count;
        }
        matmul(layer.q, own.first, own.last, read, padded, count, q, stride);
        mix_rows(m, l, pass, fewer ? pass.places : nullptr, own, q, k, v, stride, buffers.mixed);
        team.barrier(team.pool);
        if (fewer) keep_finished(pass, own, buffers.x, padded);  // all threads have read it
        if (m.token_shift) keep_rows(m, l, rows, count, own, true, normed);  // all threads have read what was kept
        matmul(layer.o, own.first, own.last, buffers.mixed, padded, count, q, stride);
        add_rows(buffers.x, padded, own, count, q, stride, nullptr);
        team.barrier(team.pool);
        for (int32_t r = 0; r < count; ++r)
            normalise(m, buffers.x + r * padded, layer.norm_mlp_weight, layer.norm_mlp_bias, normed + r * padded);
        float* h = buffers.hidden + own_hidden.first * LANES;
        if (m.token_shift) shift_rows(m, l, rows, count, layer.shift_mlp, lower, normed, shifted);
        matmul(layer.up, own_hidden.first, own_hidden.last, read, padded, count, h, hidden);
        for (int32_t r = 0; r < count; ++r)
            for (int32_t b = 0; b < own_hidden.count(); ++b) {
                float* at = h + r * hidden + b * LANES;
                const F x = load(at) + load(layer.up_bias + (own_hidden.first + b) * LANES);
                store(at, rounded_input(activate(x, m.activation)));
            }
        team.barrier(team.pool);
        if (m.token_shift) keep_rows(m, l, rows, count, own, false, normed);
        matmul(layer.down, own.first, own.last, buffers.hidden, hidden, count, q, stride);
        add_rows(buffers.x, padded, own, count, q, stride, layer.down_bias);
        team.barrier(team.pool);
    }
    if (!pass.logit_rows) return;
    for (int32_t r = 0; r < count; ++r)
        if (rows[r].logits >= 0)
            normalise(m, buffers.x + r * padded, m.norm_weight, m.norm_bias, normed + rows[r].logits * padded);
    const int64_t vocab = int64_t(m.vocab_blocks) * LANES;
    matmul(m.head, own_vocab.first, own_vocab.last, normed, padded, pass.logit_rows,
           buffers.logits + own_vocab.first * LANES, vocab);
    team.barrier(team.pool);
}

void guarded_forward(const Model& m, const Pass& pass, const Buffers& buffers, const Team& team) {
    Environment environment;
    forward(m, pass, buffers, team);
}

void exp_all(const float* x, float* y, int64_t count) {
    Environment environment;
    for (int64_t i = 0; i < count; i += LANES) {
        F lanes{};
        const int64_t here = count - i < LANES ? count - i : LANES;
        for (int64_t j = 0; j < here; ++j) lanes[j] = x[i + j];
        lanes = exp(lanes);
        for (int64_t j = 0; j < here; ++j) y[i + j] = lanes[j];
    }
}

// Reads ``count`` floats, a multiple of 128, as fast as they come.
float read_all(const float* x, int64_t count) {
    F sums[8] = {};
    for (int64_t i = 0; i < count; i += 8 * LANES)
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) sums[j] = sums[j] + load(x + i + j * LANES);
    F total{};
    for (int j = 0; j < 8; ++j) total = total + sums[j];
    return sum(total);
}

}  // namespace

#define AFT_STRING2(x) #x
#define AFT_STRING(x) AFT_STRING2(x)
extern const Probability probability;
int32_t search(const uint16_t* tokens, int32_t count, int32_t length, int32_t most, int32_t* places);
extern const Target target;
const Target target = {AFT_STRING(AFT_TARGET), guarded_forward, exp_all, read_all, matmul, &probability, search};

}  // namespace aft::AFT_TARGET
