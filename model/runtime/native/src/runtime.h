// Slots of recurrent state, and jobs that advance them: the contract of model/runtime/base.py below Python.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "match.h"
#include "pool.h"
#include "sampling.h"
#include "types.h"

namespace aft {

struct Shape {
    int32_t dim, hidden, vocab_size, num_layers, num_heads, window, places, activation;
    int32_t raster_height, raster_width, raster_channels;  // 0 without a raster
    int32_t raster_first;
    int32_t token_shift;
    int32_t mirror;  // whether the mirror image of what comes next is read
    int32_t lookback[MAX_LOOKBACKS];  // distances, ascending; 0 where there are fewer
};

struct Tensor {
    const uint16_t* bf16 = nullptr;  // one of the two
    const float* f32 = nullptr;
    std::vector<int64_t> shape;
};
using Tensors = std::map<std::string, Tensor>;

// A slot that reads what a draw's own slot reads, after another beginning: model/runtime/base.py.
struct Guide {
    int32_t slot = -1;  // none
    std::vector<int32_t> tokens;
    double weight = 1;
    explicit operator bool() const { return slot >= 0; }
};

struct Draw {
    Params params;
    int32_t max_new = 1, top = 0;
    const int32_t* automaton = nullptr;  // (states, vocab)
    Guide guide;
};

enum class Logits { NONE, LAST, ALL };
enum class Stop { NONE, ACCEPT, LENGTH, FAULT };

struct Job {
    int32_t slot = 0;
    std::vector<int32_t> tokens;
    std::vector<int32_t> targets;  // empty: none
    Logits logits = Logits::NONE;
    bool draws = false;
    Draw draw;
};

struct Done {
    std::vector<double> target_logprobs;
    std::vector<float> logits;  // (1 or n, vocab)
    std::vector<int32_t> drawn;
    std::vector<double> logprobs;
    std::vector<std::vector<std::pair<int32_t, double>>> top;
    Stop stopped = Stop::NONE;
};

const Target& choose_target(const std::string& name);  // "" for the best that this processor has
std::vector<std::string> usable_targets();

class Runtime {
public:
    // Every tensor is copied. std::invalid_argument names one that is missing or has another shape.
    Runtime(const Shape& shape, const Tensors& tensors, int32_t num_slots, int64_t max_position, int32_t threads,
            const std::string& target);

    // From here on logits are those of the network and the match model together. Before anything is read.
    void set_match(Match match);
    // The jobs must be valid: the caller has checked slots, tokens and room.
    std::vector<Done> run(const std::vector<Job>& jobs);

    int64_t position(int32_t slot) const { return slots_[slot].position; }
    Sampler& sampler(int32_t slot) { return slots_[slot].sampler; }
    const Recent& recent(int32_t slot) const { return slots_[slot].recent; }
    Recent no_recent() const;
    int32_t remembered() const;  // last tokens of a stream that are part of its state
    void reset(int32_t slot);
    void copy(int32_t source, int32_t target);
    void write(int32_t slot, const void* state, int64_t position, Sampler sampler, Recent recent);
    const uint32_t* state(int32_t slot) const { return states_ + slot * slot_words_; }
    int64_t state_bytes() const { return slot_words_ * 4; }
    int64_t weight_bytes() const { return weight_bytes_; }
    int64_t workspace_bytes() const { return workspace_bytes_; }
    int32_t num_slots() const { return int32_t(slots_.size()); }
    const char* target() const { return target_.name; }
    int threads() const { return pool_.threads(); }
    const Model& model() const { return model_; }

private:
    struct Slot {
        int64_t position = 0;
        Sampler sampler;
        Recent recent;
    };
    struct Free {
        void operator()(void* p) const;
    };
    template <class T>
    T* allocate(int64_t count);

    Matrix pack(const Tensors& tensors, const std::string& name, int64_t outputs, int64_t inputs, int64_t repeat = 1);
    const float* vector(const Tensors& tensors, const std::string& name, int64_t count);
    const uint16_t* table(const Tensors& tensors, const std::string& name, int64_t rows, int64_t columns);
    void make_layer(const Tensors& tensors, const Shape& shape, int32_t number, Layer& layer);
    void make_bias(const Tensors& tensors, const Shape& shape, const std::string& prefix, Layer& layer);
    void look_back(const Recent& recent, Row& row) const;
    int64_t mirrored(int64_t position) const;
    void pass(const std::vector<Row>& rows, const std::vector<Moment>& moments);
    float* logits_row(int32_t row) const;

    Model model_{};
    const Target& target_;
    std::vector<std::unique_ptr<void, Free>> memory_;
    std::vector<Layer> layers_;
    std::vector<Slot> slots_;
    uint32_t* states_ = nullptr;
    int32_t lookback_[MAX_LOOKBACKS + 1] = {};  // distances; that of a mirror image depends on the position: 0
    int64_t slot_words_ = 0, weight_bytes_ = 0, workspace_bytes_ = 0, max_position_;
    Match match_;
    Buffers buffers_{};
    std::vector<float*> scratch_;
    std::vector<Row> finished_;  // of a pass, as Pass says
    std::vector<int32_t> places_;
    std::vector<std::vector<double>> draw_scratch_;
    Pool pool_;
};

}  // namespace aft
