// Plain data that every instruction set's code shares. No standard header with code in it: two translation units
// compiled for different processors would both emit that code, and the linker would keep one of them.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "probability.h"

namespace aft {

constexpr int LANES = 16;  // a block: channels that are computed side by side, on every processor

// A matrix (outputs, inputs) in bf16, packed for blocks of 16 outputs: [outputs / 16][inputs / 2][16], and in each
// word the even input below the odd one. Padded with zeros to whole blocks and pairs.
struct Matrix {
    const uint32_t* words;
    int32_t blocks;  // of outputs
    int32_t pairs;   // of inputs
};

struct Layer {
    const float *norm_aft_weight, *norm_aft_bias, *norm_mlp_weight, *norm_mlp_bias;  // padded to blocks
    Matrix q, k, v, o, up, down;
    const float *up_bias, *down_bias;
    const float* window;  // exp(b) of the last s keys, oldest first: [place][head][s], or [place][block][s][16]
    const float* shrink;  // exp(-lambda), a channel: what the sums lose a step
    const float* leave;   // exp(-lambda s), a channel: what a key has lost when it leaves the window
    const float* decay;   // lambda log2 e, a channel
    const float *shift_aft, *shift_mlp;  // share of a position in what the layer and the MLP read; null: all of it
};

enum Activation : int32_t { SQUARED_RELU = 0, GELU = 1 };

constexpr int32_t MAX_LOOKBACKS = 8;

struct Model {
    int32_t dim, hidden, vocab_size, num_layers, window;
    int32_t dim_blocks, hidden_blocks, vocab_blocks;
    int32_t places;           // rows of the window tables: 1, or the row of a raster, or all positions
    int32_t heads;            // of a window table; a block lies in one head
    int32_t token_shift;      // whether layers and MLPs read a mixture of a position and the one before
    int32_t window_by_block;  // where heads are no whole blocks: one weight a channel
    int32_t activation;
    const Layer* layers;
    const float *norm_weight, *norm_bias;
    Matrix head;
    const uint16_t* embed;  // (vocab, dim) bf16
    const uint16_t *embed_channel, *embed_row, *embed_column;  // of a pixel model; null otherwise
    int32_t lookbacks;
    const uint16_t* lookback[MAX_LOOKBACKS + 1];  // (vocab, dim) each; the last may be that of mirror images
    int32_t raster_height, raster_width, raster_channels;
    int32_t raster_first;  // the position of the first sub-pixel: a name stands before it
};

// One position of one stream. Rows of one stream stand in order.
struct Row {
    uint32_t* state;
    int64_t position;
    int32_t token;
    int32_t logits;  // row of the logits that are wanted, or -1
    int32_t before[MAX_LOOKBACKS + 1];  // tokens that a lookback reads, or -1
};

// Of a slot's state, per layer: [block][s][16] words, the key's exp(k) above its product with the value, both bf16;
// then [16-padded channels] den, num, peak in float32, and with a token shift a word for what the layer (above) and the
// MLP (below) saw last, both bf16.
static inline int64_t layer_words(const Model& m) {
    return int64_t(m.dim_blocks) * LANES * (m.window + 3 + m.token_shift);
}
static inline uint32_t* layer_state(const Model& m, uint32_t* state, int32_t l) {
    return state + l * layer_words(m);
}
static inline float* layer_sums(const Model& m, uint32_t* state, int32_t l) {
    return (float*)(layer_state(m, state, l) + int64_t(m.dim_blocks) * LANES * m.window);
}
static inline uint32_t* layer_shifted(const Model& m, uint32_t* state, int32_t l) {
    return layer_state(m, state, l) + int64_t(m.dim_blocks) * LANES * (m.window + 3);
}

// What a pass reads, and what it is asked for. The last layer takes every row into its state, but only ``finished`` rows
// go on from there: those with logits, the ones before them (a token shift reads them), the last of each stream.
struct Pass {
    const Row* rows;
    int32_t count;
    const Row* finished;
    const int32_t* places;  // of the finished among all, ascending
    int32_t finished_count;
    int32_t logit_rows;
};

// Memory of a forward pass. Shared between the threads, except scratch.
struct Buffers {
    float* x;        // (rows, padded dim): the residual stream
    float* mixed;    // (rows, padded dim) bf16 values: what the o projection reads
    float* hidden;   // (rows, padded hidden) bf16 values
    float* logits;   // (logit rows, padded vocab)
    float** scratch; // a thread: (rows, 5 * padded dim)
};

// A thread's share of a pass.
struct Team {
    int32_t thread, threads;
    void (*barrier)(void*);
    void* pool;
};

using Forward = void (*)(const Model&, const Pass&, const Buffers&, const Team&);
// exp of float32 values by the kernel's own polynomial: tables are made with it
using Exp = void (*)(const float* x, float* y, int64_t count);

// For `aft bench`: read floats, and multiply small matrices that stay in the nearest cache.
using Read = float (*)(const float* x, int64_t count);
using Matmul = void (*)(const Matrix& w, int32_t first, int32_t last, const float* x, int64_t x_stride, int32_t rows,
                        float* y, int64_t y_stride);

// Where tokens[0 .. count) have before them the same ``length`` tokens as their end has; the newest first, at most
// ``most``. Those places are ``length`` <= place < count.
constexpr int32_t MAX_MATCHES = 64;
using Search = int32_t (*)(const uint16_t* tokens, int32_t count, int32_t length, int32_t most, int32_t* places);

struct Target {
    const char* name;
    Forward forward;
    Exp exp;
    Read read;
    Matmul matmul;
    const Probability* probability;
    Search search;
};

}  // namespace aft
