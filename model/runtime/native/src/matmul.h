// The matrix product of each target: declared here, defined in matmul.cpp.
#pragma once
#include "types.h"

namespace aft::AFT_TARGET {

// y[r][16 b + lane] = sum over inputs of w x, for blocks first ... last - 1 of the outputs. x holds bf16 values, padded
// with zeros to pairs; y begins at block ``first``.
void matmul(const Matrix& w, int32_t first, int32_t last, const float* x, int64_t x_stride, int32_t rows, float* y,
            int64_t y_stride);

}  // namespace aft::AFT_TARGET
