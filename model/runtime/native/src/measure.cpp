#include "measure.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "pool.h"
#include "runtime.h"

namespace aft {
namespace {

constexpr int REPEATS = 5;
constexpr double SECONDS = 0.05;  // of one repeat

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The best of some repeats of ``work``, in units a second; ``units`` is what one call of it does on all threads.
template <class Work>
double best_rate(int threads, double units, const Work& work) {
    Pool pool(threads);
    double best = 0;
    for (int i = 0; i <= REPEATS; ++i) {  // the first warms up
        const double begin = now();
        int64_t calls = 0;
        do {
            pool.run(work);
            ++calls;
        } while (now() - begin < SECONDS);
        if (i) best = std::max(best, units * double(calls) / (now() - begin));
    }
    return best;
}

}  // namespace

double bandwidth(const std::string& name, int threads, int64_t bytes) {
    const Target& target = choose_target(name);
    const int64_t share = std::max<int64_t>(bytes / 4 / threads / 128, 1) * 128;
    std::vector<std::vector<float>> memory(threads, std::vector<float>(share, 1.0f));
    std::vector<float> sums(threads);
    return best_rate(threads, double(share) * 4 * threads,
                     [&](int thread) { sums[thread] += target.read(memory[thread].data(), share); });
}

double flops(const std::string& name, int threads) {
    const Target& target = choose_target(name);
    constexpr int32_t BLOCKS = 4, PAIRS = 64, ROWS = 12, CALLS = 50;
    std::vector<uint32_t> words(BLOCKS * PAIRS * LANES, 0x3f803f80);
    const Matrix matrix{words.data(), BLOCKS, PAIRS};
    std::vector<float> x(ROWS * 2 * PAIRS, 1.0f);
    std::vector<std::vector<float>> y(threads, std::vector<float>(ROWS * BLOCKS * LANES));
    const double operations = 2.0 * BLOCKS * LANES * PAIRS * 2 * ROWS * CALLS * threads;
    return best_rate(threads, operations, [&](int thread) {
        for (int i = 0; i < CALLS; ++i)
            target.matmul(matrix, 0, BLOCKS, x.data(), 2 * PAIRS, ROWS, y[thread].data(), BLOCKS * LANES);
    });
}

}  // namespace aft
