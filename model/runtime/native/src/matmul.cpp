// Matrix products: bf16 x bf16, summed in float32 over the inputs in order, of each pair the odd one first.
//
// The product of two bf16 numbers is exact in float32, so that a fused multiply-add and a multiply followed by an add
// give the same bits: this file alone may be compiled with contraction. The order of a sum does not depend on how many
// rows or blocks are computed together.
#include "matmul.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define AFT_WIDTH 16
#define AFT_ROWS 6
#define AFT_BLOCKS 4
#elif defined(__AVX2__)
#define AFT_WIDTH 8
#define AFT_ROWS 4
#define AFT_BLOCKS 1
#elif defined(__aarch64__)
#define AFT_WIDTH 4
#define AFT_ROWS 4
#define AFT_BLOCKS 1
#else
#define AFT_WIDTH 4
#define AFT_ROWS 2
#define AFT_BLOCKS 1
#endif

namespace aft::AFT_TARGET {
namespace {

constexpr int WIDTH = AFT_WIDTH;         // lanes of a register
constexpr int PARTS = LANES / WIDTH;     // registers of a block
constexpr int ROWS = AFT_ROWS, BLOCKS = AFT_BLOCKS;
constexpr int PAIRS = 64;  // of inputs, at a time: 16 KiB of weights where a tile has 4 blocks
constexpr int ROWS_AT_ONCE = 32 * ROWS;
constexpr int BLOCKS_OF_ONE = PARTS > 2 ? 1 : 4;  // one row: enough sums side by side to hide an addition's latency

typedef float V __attribute__((vector_size(WIDTH * 4)));
typedef uint32_t W __attribute__((vector_size(WIDTH * 4)));
typedef float Vu __attribute__((vector_size(WIDTH * 4), aligned(4)));
typedef uint32_t Wu __attribute__((vector_size(WIDTH * 4), aligned(4)));

#if defined(__AVX512BF16__)
// Both products of a pair by one instruction, which adds the odd one first and rounds after each; neither is denormal,
// so that it makes no difference that it takes denormals for 0.
typedef uint32_t Input;  // a pair, as a word of weights has it
constexpr int INPUTS = 1;  // of a pair

struct Inputs {
    const Input* at;
    int64_t stride;
};

struct Weights {
    W pair;
    explicit Weights(W pair) : pair(pair) {}
    V add(V total, const Input* x) const {
        return (V)_mm512_dpbf16_ps((__m512)total, (__m512bh)pair, (__m512bh)_mm512_set1_epi32(int(*x)));
    }
};

// Rows of pairs, side by side: a value that was rounded to bf16 has its bits in the upper half.
inline Inputs pairs_of(const float* x, int64_t x_stride, int32_t rows, int32_t pairs, Input* packed) {
    for (int32_t r = 0; r < rows; ++r, x += x_stride)
        for (int32_t p = 0; p < pairs; ++p)
            packed[r * pairs + p] =
                __builtin_bit_cast(uint32_t, x[2 * p]) >> 16 | (__builtin_bit_cast(uint32_t, x[2 * p + 1]) & 0xffff0000u);
    return {packed, pairs};
}
#else
typedef float Input;
constexpr int INPUTS = 2;

struct Inputs {
    const Input* at;
    int64_t stride;
};

struct Weights {
    V odd, even;
    explicit Weights(W pair) : odd((V)(pair & 0xffff0000u)), even((V)(pair << 16)) {}
    V add(V total, const Input* x) const {
        total += odd * x[1];
        total += even * x[0];
        return total;
    }
};

inline Inputs pairs_of(const float* x, int64_t x_stride, int32_t, int32_t, Input*) {
    return {x, x_stride};
}
#endif

// Sums of R rows and B blocks over some pairs of inputs; ``more`` continues those that stand in y.
template <int R, int B>
inline void tile(const uint32_t* words, int64_t block, int64_t pairs, bool more, const Input* x, int64_t x_stride,
                 float* y, int64_t y_stride) {
    V sums[R][B * PARTS] = {};
    if (more)
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
            for (int i = 0; i < B * PARTS; ++i) sums[r][i] = *reinterpret_cast<const Vu*>(y + r * y_stride + i * WIDTH);
    for (int64_t p = 0; p < pairs; ++p) {
#pragma GCC unroll 16
        for (int b = 0; b < B; ++b) {
#pragma GCC unroll 16
            for (int i = 0; i < PARTS; ++i) {
                const Weights weights(*reinterpret_cast<const Wu*>(words + b * block + p * LANES + i * WIDTH));
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) {
                    V& total = sums[r][b * PARTS + i];
                    total = weights.add(total, x + r * x_stride + INPUTS * p);
                }
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int i = 0; i < B * PARTS; ++i) *reinterpret_cast<Vu*>(y + r * y_stride + i * WIDTH) = sums[r][i];
}

// Some pairs of a product's inputs with some blocks of its outputs.
struct Product {
    const Matrix& w;
    int32_t first_pair, pairs;
    Inputs x;  // from the first pair on
    float* y;
    int64_t y_stride;

    template <int R, int B>
    void rows(int32_t row, int32_t block, int32_t blocks, float* out) const {
        const int64_t size = int64_t(w.pairs) * LANES;
        const uint32_t* words = w.words + block * size + int64_t(first_pair) * LANES;
        const Input* in = x.at + row * x.stride;
        out += row * y_stride;
        int32_t b = 0;
        for (; b + B <= blocks; b += B)
            tile<R, B>(words + b * size, size, pairs, first_pair > 0, in, x.stride, out + b * LANES, y_stride);
        for (; b < blocks; ++b)
            tile<R, 1>(words + b * size, size, pairs, first_pair > 0, in, x.stride, out + b * LANES, y_stride);
    }

    // fewer rows than a tile has, R or less
    template <int R>
    void rest(int32_t count, int32_t row, int32_t block, int32_t blocks, float* out) const {
        if (count == R)
            rows<R, BLOCKS>(row, block, blocks, out);
        else if constexpr (R > 1)
            rest<R - 1>(count, row, block, blocks, out);
    }

    // some blocks of weights stay in the nearest cache while all rows pass over them
    void all(int32_t count, int32_t first, int32_t last) const {
        for (int32_t b = first; b < last; b += BLOCKS) {
            const int32_t blocks = b + BLOCKS < last ? BLOCKS : last - b;
            float* out = y + (b - first) * LANES;
            int32_t r = 0;
            for (; r + ROWS <= count; r += ROWS) rows<ROWS, BLOCKS>(r, b, blocks, out);
            rest<ROWS - 1>(count - r, r, b, blocks, out);
        }
    }
};

}  // namespace

void matmul(const Matrix& w, int32_t first, int32_t last, const float* x, int64_t x_stride, int32_t rows, float* y,
            int64_t y_stride) {
    alignas(64) Input packed[ROWS_AT_ONCE * PAIRS];
    const int32_t at_once = rows == 1 ? ROWS_AT_ONCE * PAIRS : PAIRS;
    for (int32_t r = 0; r < rows; r += ROWS_AT_ONCE) {
        const float* some = x + r * x_stride;
        float* out = y + r * y_stride;
        const int32_t count = r + ROWS_AT_ONCE < rows ? ROWS_AT_ONCE : rows - r;
        for (int32_t p = 0; p < w.pairs; p += at_once) {
            const int32_t pairs = p + at_once < w.pairs ? at_once : w.pairs - p;
            const Product part{w, p, pairs, pairs_of(some + 2 * int64_t(p), x_stride, count, pairs, packed),
                               out, y_stride};
            if (rows == 1)
                part.rows<1, BLOCKS_OF_ONE>(0, first, last - first, out);
            else
                part.all(count, first, last);
        }
    }
}

}  // namespace aft::AFT_TARGET
