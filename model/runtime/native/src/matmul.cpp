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
constexpr int BLOCKS_OF_ONE = PARTS > 2 ? 1 : 4;  // one row: enough sums side by side to hide an addition's latency

typedef float V __attribute__((vector_size(WIDTH * 4)));
typedef uint32_t W __attribute__((vector_size(WIDTH * 4)));
typedef float Vu __attribute__((vector_size(WIDTH * 4), aligned(4)));
typedef uint32_t Wu __attribute__((vector_size(WIDTH * 4), aligned(4)));

template <int R, int B>
inline void tile(const uint32_t* words, int64_t pairs, const float* x, int64_t x_stride, float* y, int64_t y_stride) {
    V sums[R][B * PARTS] = {};
    for (int64_t p = 0; p < pairs; ++p) {
#pragma GCC unroll 16
        for (int b = 0; b < B; ++b) {
#pragma GCC unroll 16
            for (int i = 0; i < PARTS; ++i) {
                W pair = *reinterpret_cast<const Wu*>(words + (b * pairs + p) * LANES + i * WIDTH);
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
    for (int r = 0; r < R; ++r)
        for (int i = 0; i < B * PARTS; ++i)
            *reinterpret_cast<Vu*>(y + r * y_stride + i * WIDTH) = sums[r][i];
}

template <int R, int B>
void rows_of(const Matrix& w, int32_t first, int32_t last, const float* x, int64_t x_stride, float* y,
             int64_t y_stride) {
    const int64_t block = int64_t(w.pairs) * LANES;
    int32_t b = first;
    for (; b + B <= last; b += B)
        tile<R, B>(w.words + b * block, w.pairs, x, x_stride, y + (b - first) * LANES, y_stride);
    for (; b < last; ++b) tile<R, 1>(w.words + b * block, w.pairs, x, x_stride, y + (b - first) * LANES, y_stride);
}

}  // namespace

void matmul(const Matrix& w, int32_t first, int32_t last, const float* x, int64_t x_stride, int32_t rows, float* y,
            int64_t y_stride) {
    if (rows == 1) {
        rows_of<1, BLOCKS_OF_ONE>(w, first, last, x, x_stride, y, y_stride);
        return;
    }
    // a few blocks of weights stay in the nearest cache while all rows pass over them
    for (int32_t b = first; b < last; b += BLOCKS) {
        const int32_t end = b + BLOCKS < last ? b + BLOCKS : last;
        float* out = y + (b - first) * LANES;
        int32_t r = 0;
        for (; r + ROWS <= rows; r += ROWS)
            rows_of<ROWS, BLOCKS>(w, b, end, x + r * x_stride, x_stride, out + r * y_stride, y_stride);
        for (; r < rows; ++r)
            rows_of<1, BLOCKS>(w, b, end, x + r * x_stride, x_stride, out + r * y_stride, y_stride);
    }
}

}  // namespace aft::AFT_TARGET
