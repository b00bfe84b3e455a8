// Matrix products: bf16 x bf16, summed in float32 over the inputs in order, of each pair the odd one first.
//
// The product of two bf16 numbers is exact in float32, so that a fused multiply-add and a multiply followed by an add
// give the same bits: this file alone may be compiled with contraction. The order of a sum does not depend on how many
// rows or blocks are computed together.
#include "matmul.h"

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
constexpr int BLOCKS_OF_ONE = PARTS > 2 ? 1 : 4;  // one row: enough sums side by side to hide an addition's latency

typedef float V __attribute__((vector_size(WIDTH * 4)));
typedef uint32_t W __attribute__((vector_size(WIDTH * 4)));
typedef float Vu __attribute__((vector_size(WIDTH * 4), aligned(4)));
typedef uint32_t Wu __attribute__((vector_size(WIDTH * 4), aligned(4)));

// Sums of R rows and B blocks over some pairs of inputs; ``more`` continues those that stand in y.
template <int R, int B>
inline void tile(const uint32_t* words, int64_t block, int64_t pairs, bool more, const float* x, int64_t x_stride,
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
                W pair = *reinterpret_cast<const Wu*>(words + b * block + p * LANES + i * WIDTH);
                V odd = (V)(pair & 0xffff0000u), even = (V)(pair << 16);
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) {
                    V& total = sums[r][b * PARTS + i];
                    total += odd * x[r * x_stride + 2 * p + 1];
                    total += even * x[r * x_stride + 2 * p];
                }
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int i = 0; i < B * PARTS; ++i) *reinterpret_cast<Vu*>(y + r * y_stride + i * WIDTH) = sums[r][i];
}

// One product: blocks first ... last of w with some rows of x.
struct Product {
    const Matrix& w;
    const float* x;
    int64_t x_stride;
    float* y;
    int64_t y_stride;

    template <int R, int B>
    void rows(int32_t row, int32_t blocks, int32_t block, int32_t first_pair, int32_t pairs) const {
        const int64_t size = int64_t(w.pairs) * LANES;
        const uint32_t* words = w.words + block * size + int64_t(first_pair) * LANES;
        const float* in = x + row * x_stride + 2 * int64_t(first_pair);
        float* out = y + row * y_stride;
        int32_t b = 0;
        for (; b + B <= blocks; b += B)
            tile<R, B>(words + b * size, size, pairs, first_pair > 0, in, x_stride, out + b * LANES, y_stride);
        for (; b < blocks; ++b)
            tile<R, 1>(words + b * size, size, pairs, first_pair > 0, in, x_stride, out + b * LANES, y_stride);
    }

    // fewer rows than a tile has, R or less
    template <int R>
    void rest(int32_t count, int32_t row, int32_t blocks, int32_t block, int32_t first_pair, int32_t pairs) const {
        if (count == R)
            rows<R, BLOCKS>(row, blocks, block, first_pair, pairs);
        else if constexpr (R > 1)
            rest<R - 1>(count, row, blocks, block, first_pair, pairs);
    }
};

}  // namespace

void matmul(const Matrix& w, int32_t first, int32_t last, const float* x, int64_t x_stride, int32_t rows, float* y,
            int64_t y_stride) {
    const Product product{w, x, x_stride, y, y_stride};
    if (rows == 1) {
        product.rows<1, BLOCKS_OF_ONE>(0, last - first, first, 0, w.pairs);
        return;
    }
    // some blocks and pairs of weights stay in the nearest cache while all rows pass over them
    for (int32_t b = first; b < last; b += BLOCKS) {
        const int32_t blocks = b + BLOCKS < last ? BLOCKS : last - b;
        const Product part{w, x, x_stride, y + (b - first) * LANES, y_stride};
        for (int32_t p = 0; p < w.pairs; p += PAIRS) {
            const int32_t pairs = p + PAIRS < w.pairs ? PAIRS : w.pairs - p;
            int32_t r = 0;
            for (; r + ROWS <= rows; r += ROWS) part.rows<ROWS, BLOCKS>(r, blocks, b, p, pairs);
            part.rest<ROWS - 1>(rows - r, r, blocks, b, p, pairs);
        }
    }
}

}  // namespace aft::AFT_TARGET
