// The kernel without Python: reads what tests/native_build.py wrote, feeds the tokens to one slot, and writes the logits
// after the last. With threads, and then for another instruction set than the best, where these are given.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <new>
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

constexpr int SLOTS = 10;

// Streams beside the text's own, so many that the threads share their draws.
void burst(aft::Runtime& runtime) {
    std::vector<aft::Job> jobs(SLOTS - 1);
    for (int i = 0; i < SLOTS - 1; ++i) {
        jobs[i].slot = i + 1;
        jobs[i].tokens = {1, 2, i};
        jobs[i].draws = true;
        jobs[i].draw.params = {1.0, 0.9, 0.0, 0.5, 0.0, 1.2, 0, uint64_t(i), 0, {}};
        jobs[i].draw.max_new = 8;
        jobs[i].draw.top = 2;
    }
    runtime.run(jobs);
}

}  // namespace

int main(int argc, char** argv) {
    FILE* file = argc >= 3 && argc <= 5 ? fopen(argv[1], "rb") : nullptr;
    const int threads = argc > 3 ? atoi(argv[3]) : 1;
    const std::string target = argc > 4 ? argv[4] : "";
    if (!file) return 2;
    aft::Shape shape;
    static_assert(sizeof(shape) == 22 * 4);
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
    aft::Match match;
    match.window = one<int32_t>(file);
    match.shortest = one<int32_t>(file);
    match.most = one<int32_t>(file);
    match.masses = read<double>(file, one<int32_t>(file));
    const int64_t last = one<int64_t>(file);
    aft::Job job;
    job.tokens = read<int32_t>(file, one<int32_t>(file));
    job.logits = aft::Logits::LAST;
    fclose(file);
    aft::Runtime runtime(shape, tensors, SLOTS, last, threads, target);
    runtime.set_match(match);
    if (threads > 1) {  // what a thread throws comes out of the call, and the pool goes on
        aft::Pool pool(threads);
        for (int thrower = 0; thrower < threads; ++thrower) {
            int caught = 0;
            std::atomic<int> called = 0;
            try {
                pool.run([&](int thread) {
                    ++called;
                    if (thread == thrower) throw std::bad_alloc();
                });
            } catch (const std::bad_alloc&) {
                caught = 1;
            }
            pool.run([&](int) { ++called; });
            if (caught != 1 || called != 2 * threads) return 3;
        }
    }
    if (threads > 1) {  // two pools take turns, and one of them ends before the other
        aft::Runtime other(shape, tensors, SLOTS, last, threads, target);
        other.set_match(match);
        for (int i = 0; i < 3; ++i)
            for (aft::Runtime* each : {&runtime, &other}) burst(*each);
    }
    const auto done = runtime.run({job});
    FILE* out = fopen(argv[2], "wb");
    fwrite(done[0].logits.data(), 4, done[0].logits.size(), out);
    fclose(out);
    printf("%s\n", runtime.target());
    return 0;
}
