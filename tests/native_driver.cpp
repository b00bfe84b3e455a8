// The kernel without Python, for emulated processors: reads what tests/native_emulated.py wrote, feeds the tokens to one
// slot, and writes the logits after the last.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "../model/runtime/native/src/runtime.h"

namespace {

template <class T>
std::vector<T> read(FILE* file, size_t count) {
    std::vector<T> values(count);
    if (count && fread(values.data(), sizeof(T), count, file) != count) {
        fprintf(stderr, "the file is too short\n");
        exit(1);
    }
    return values;
}

template <class T>
T one(FILE* file) {
    return read<T>(file, 1)[0];
}

}  // namespace

int main(int argc, char** argv) {
    FILE* file = argc == 3 ? fopen(argv[1], "rb") : nullptr;
    if (!file) return 2;
    aft::Shape shape;
    static_assert(sizeof(shape) == 11 * 4);
    shape = one<aft::Shape>(file);
    std::vector<std::vector<uint8_t>> memory;
    aft::Tensors tensors;
    for (int32_t left = one<int32_t>(file); left; --left) {
        const auto name = read<char>(file, one<int32_t>(file));
        const int32_t is_float = one<int32_t>(file);
        aft::Tensor tensor;
        tensor.shape = read<int64_t>(file, one<int32_t>(file));
        size_t count = is_float ? 4 : 2;
        for (int64_t size : tensor.shape) count *= size;
        memory.push_back(read<uint8_t>(file, count));
        if (is_float)
            tensor.f32 = reinterpret_cast<const float*>(memory.back().data());
        else
            tensor.bf16 = reinterpret_cast<const uint16_t*>(memory.back().data());
        tensors[std::string(name.begin(), name.end())] = tensor;
    }
    const int64_t last = one<int64_t>(file);
    aft::Job job;
    job.tokens = read<int32_t>(file, one<int32_t>(file));
    job.logits = aft::Logits::LAST;
    fclose(file);
    aft::Runtime runtime(shape, tensors, 1, last, 1, "");
    const auto done = runtime.run({job});
    FILE* out = fopen(argv[2], "wb");
    fwrite(done[0].logits.data(), 4, done[0].logits.size(), out);
    fclose(out);
    printf("%s\n", runtime.target());
    return 0;
}
