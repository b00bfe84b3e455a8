#include "runtime.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

namespace aft {
namespace {

constexpr int32_t MAX_ROWS = 128;  // positions of one pass: their activations stay in cache
constexpr float MAX_WINDOW_DECAY = 40.0f;  // model/bias.py
constexpr float LEAST_WEIGHT = 8.8817842e-16f;  // 2^-50, as for what weights are multiplied with
constexpr float EMPTY_PEAK = -1e30f;  // before the first key: a frame below any

int32_t blocks_of(int64_t count) { return int32_t((count + LANES - 1) / LANES); }

std::string shape_text(const std::vector<int64_t>& shape) {
    std::string text = "(";
    for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + ")";
}

const Tensor& find(const Tensors& tensors, const std::string& name, const std::vector<int64_t>& shape) {
    const auto at = tensors.find(name);
    if (at == tensors.end()) throw std::invalid_argument("tensor " + name + " is missing");
    if (at->second.shape != shape)
        throw std::invalid_argument("tensor " + name + " has shape " + shape_text(at->second.shape) +
                                    ", the config asks for " + shape_text(shape));
    return at->second;
}

uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

// Element i in bf16, to nearest even; what is too small for an exact sum is 0.
uint16_t bf16_of(const Tensor& tensor, int64_t i, float least) {
    uint32_t bits = tensor.bf16 ? uint32_t(tensor.bf16[i]) << 16 : bits_of(tensor.f32[i]);
    if (!tensor.bf16) bits += 0x7fff + (bits >> 16 & 1);
    const float value = float_of(bits & 0xffff0000u);
    return (value < 0 ? -value : value) < least ? 0 : uint16_t(bits >> 16);
}

}  // namespace

void Runtime::Free::operator()(void* p) const { std::free(p); }

template <class T>
T* Runtime::allocate(int64_t count) {
    const size_t bytes = (std::max<int64_t>(count, 1) * sizeof(T) + 63) / 64 * 64;
    void* p = std::aligned_alloc(64, bytes);
    if (!p) throw std::bad_alloc();
    std::memset(p, 0, bytes);
    memory_.emplace_back(p);
    return static_cast<T*>(p);
}

Matrix Runtime::pack(const Tensors& tensors, const std::string& name, int64_t outputs, int64_t inputs, int64_t repeat) {
    const Tensor& tensor = find(tensors, name, {outputs / repeat, inputs});
    // the inputs are activations, which are padded to whole blocks
    const int64_t pairs = int64_t(blocks_of(inputs)) * LANES / 2;
    Matrix matrix{nullptr, blocks_of(outputs), int32_t(pairs)};
    uint32_t* words = allocate<uint32_t>(matrix.blocks * pairs * LANES);
    for (int64_t o = 0; o < outputs; ++o)
        for (int64_t i = 0; i < inputs; ++i) {
            const uint32_t value = bf16_of(tensor, o / repeat * inputs + i, LEAST_WEIGHT);
            words[((o / LANES) * pairs + i / 2) * LANES + o % LANES] |= i % 2 ? value << 16 : value;
        }
    matrix.words = words;
    weight_bytes_ += int64_t(matrix.blocks) * pairs * LANES * 4;
    return matrix;
}

const float* Runtime::vector(const Tensors& tensors, const std::string& name, int64_t count) {
    const Tensor& tensor = find(tensors, name, {count});
    float* padded = allocate<float>(int64_t(blocks_of(count)) * LANES);
    for (int64_t i = 0; i < count; ++i)
        padded[i] = tensor.f32 ? tensor.f32[i] : float_of(uint32_t(tensor.bf16[i]) << 16);
    weight_bytes_ += count * 4;
    return padded;
}

const uint16_t* Runtime::table(const Tensors& tensors, const std::string& name, int64_t rows, int64_t columns) {
    const Tensor& tensor = find(tensors, name, {rows, columns});
    uint16_t* copy = allocate<uint16_t>(rows * columns);
    for (int64_t i = 0; i < rows * columns; ++i) copy[i] = bf16_of(tensor, i, 0.0f);
    weight_bytes_ += rows * columns * 2;
    return copy;
}

void Runtime::make_bias(const Tensors& tensors, const Shape& shape, const std::string& prefix, Layer& layer) {
    const int64_t heads = shape.num_heads, window = shape.window, channels = shape.dim / heads;
    const int64_t padded = int64_t(model_.dim_blocks) * LANES, places = shape.places;
    std::vector<float> lambda(heads, 0.0f);
    if (tensors.count(prefix + "log_decay")) {
        const float* logs = vector(tensors, prefix + "log_decay", heads);
        target_.exp(logs, lambda.data(), heads);
        for (float& l : lambda) l = std::min(l, MAX_WINDOW_DECAY / float(std::max<int64_t>(window, 1)));
    }
    auto by_channel = [&](auto value) {
        float* out = allocate<float>(padded);
        for (int64_t c = 0; c < shape.dim; ++c) out[c] = value(lambda[c / channels]);
        return out;
    };
    float* shrink = by_channel([](float l) { return -l; });
    target_.exp(shrink, shrink, padded);
    float* leave = by_channel([&](float l) { return -l * float(window); });
    target_.exp(leave, leave, padded);
    layer.shrink = shrink;
    layer.leave = leave;
    layer.decay = by_channel([](float l) { return l * 1.44269504f; });
    if (!window) return;
    const Tensor& band = find(tensors, prefix + "band", {places, heads, window});
    if (!band.f32) throw std::invalid_argument("tensor " + prefix + "band must be float32");
    std::vector<float> weights(places * heads * window);  // oldest first
    for (int64_t p = 0; p < places * heads; ++p)
        for (int64_t age = 0; age < window; ++age)
            weights[p * window + window - 1 - age] = band.f32[p * window + age] - lambda[p % heads] * float(age);
    target_.exp(weights.data(), weights.data(), int64_t(weights.size()));
    if (!model_.window_by_block) {
        float* out = allocate<float>(int64_t(weights.size()));
        std::copy(weights.begin(), weights.end(), out);
        layer.window = out;
        weight_bytes_ += int64_t(weights.size()) * 4;
        return;
    }
    float* out = allocate<float>(places * padded * window);
    for (int64_t p = 0; p < places; ++p)
        for (int64_t c = 0; c < padded; ++c)
            for (int64_t j = 0; j < window; ++j)  // padding has a weight too: its average is 0 / 1, not 0 / 0
                out[((p * model_.dim_blocks + c / LANES) * window + j) * LANES + c % LANES] =
                    c < shape.dim ? weights[(p * heads + c / channels) * window + j] : 1.0f;
    layer.window = out;
    weight_bytes_ += places * padded * window * 4;
}

void Runtime::make_layer(const Tensors& tensors, const Shape& shape, int32_t number, Layer& layer) {
    const std::string prefix = "blocks." + std::to_string(number) + ".";
    const int64_t dim = shape.dim, hidden = shape.hidden;
    layer.norm_aft_weight = vector(tensors, prefix + "norm_aft.weight", dim);
    layer.norm_aft_bias = vector(tensors, prefix + "norm_aft.bias", dim);
    layer.norm_mlp_weight = vector(tensors, prefix + "norm_mlp.weight", dim);
    layer.norm_mlp_bias = vector(tensors, prefix + "norm_mlp.bias", dim);
    layer.q = pack(tensors, prefix + "aft.q.weight", dim, dim);
    // AFT-conv has one key a head: every channel of the head gets a copy of its row
    const auto keys = tensors.find(prefix + "aft.k.weight");
    const bool shared = keys != tensors.end() && !keys->second.shape.empty() && keys->second.shape[0] != dim &&
                        keys->second.shape[0] == shape.num_heads;
    layer.k = pack(tensors, prefix + "aft.k.weight", dim, dim, shared ? dim / shape.num_heads : 1);
    layer.v = pack(tensors, prefix + "aft.v.weight", dim, dim);
    layer.o = pack(tensors, prefix + "aft.o.weight", dim, dim);
    layer.up = pack(tensors, prefix + "mlp.up.weight", hidden, dim);
    layer.down = pack(tensors, prefix + "mlp.down.weight", dim, hidden);
    layer.up_bias = vector(tensors, prefix + "mlp.up.bias", hidden);
    layer.down_bias = vector(tensors, prefix + "mlp.down.bias", dim);
    if (shape.token_shift) {
        layer.shift_aft = vector(tensors, prefix + "shift_aft.share", dim);
        layer.shift_mlp = vector(tensors, prefix + "shift_mlp.share", dim);
    }
    make_bias(tensors, shape, prefix + "aft.bias.", layer);
}

Runtime::Runtime(const Shape& shape, const Tensors& tensors, int32_t num_slots, int64_t max_position, int32_t threads,
                 const std::string& target)
    : target_(choose_target(target)), max_position_(max_position), pool_(threads) {
    model_ = {};
    model_.dim = shape.dim;
    model_.hidden = shape.hidden;
    model_.vocab_size = shape.vocab_size;
    model_.num_layers = shape.num_layers;
    model_.window = shape.window;
    model_.dim_blocks = blocks_of(shape.dim);
    model_.hidden_blocks = blocks_of(shape.hidden);
    model_.vocab_blocks = blocks_of(shape.vocab_size);
    model_.places = shape.places;
    model_.heads = shape.num_heads;
    model_.token_shift = shape.token_shift;
    model_.window_by_block = shape.dim / shape.num_heads % LANES != 0;
    model_.activation = shape.activation;
    layers_.resize(shape.num_layers);
    for (int32_t l = 0; l < shape.num_layers; ++l) make_layer(tensors, shape, l, layers_[l]);
    model_.layers = layers_.data();
    model_.norm_weight = vector(tensors, "norm.weight", shape.dim);
    model_.norm_bias = vector(tensors, "norm.bias", shape.dim);
    const bool raster = shape.raster_height > 0;
    const std::string embed = raster ? "embed.value.weight" : "embed.weight";
    model_.embed = table(tensors, embed, shape.vocab_size, shape.dim);
    if (raster) {
        model_.raster_height = shape.raster_height;
        model_.raster_width = shape.raster_width;
        model_.raster_channels = shape.raster_channels;
        model_.raster_first = shape.raster_first;
        model_.embed_channel = table(tensors, "embed.channel.weight", shape.raster_channels, shape.dim);
        model_.embed_row = table(tensors, "embed.row.weight", shape.raster_height, shape.dim);
        model_.embed_column = table(tensors, "embed.column.weight", shape.raster_width, shape.dim);
    }
    std::copy(shape.lookback, shape.lookback + MAX_LOOKBACKS, lookback_);
    for (int32_t& i = model_.lookbacks; i < MAX_LOOKBACKS && lookback_[i]; ++i)
        model_.lookback[i] =
            table(tensors, "lookback.tables." + std::to_string(i) + ".weight", shape.vocab_size, shape.dim);
    if (shape.mirror)
        model_.lookback[model_.lookbacks++] = table(tensors, "lookback.mirror.weight", shape.vocab_size, shape.dim);
    // a tied head is the embedding, which is stored once
    model_.head = pack(tensors, tensors.count("head.weight") ? "head.weight" : embed, shape.vocab_size, shape.dim);

    const int64_t dim = int64_t(model_.dim_blocks) * LANES, hidden = int64_t(model_.hidden_blocks) * LANES;
    const int64_t vocab = int64_t(model_.vocab_blocks) * LANES;
    slot_words_ = layer_words(model_) * shape.num_layers;
    states_ = allocate<uint32_t>(slot_words_ * num_slots);
    slots_.resize(num_slots);
    for (int32_t i = 0; i < num_slots; ++i) reset(i);
    const int64_t rows = std::max<int64_t>(MAX_ROWS, num_slots);
    buffers_.x = allocate<float>(rows * dim);
    buffers_.mixed = allocate<float>(rows * dim);
    buffers_.hidden = allocate<float>(rows * hidden);
    buffers_.logits = allocate<float>(rows * vocab);
    for (int i = 0; i < threads; ++i) scratch_.push_back(allocate<float>(rows * dim * 5));
    buffers_.scratch = scratch_.data();
    workspace_bytes_ = rows * (2 * dim + hidden + vocab + threads * 5 * dim) * 4;
    draw_scratch_.resize(threads);
}

void Runtime::reset(int32_t slot) {
    uint32_t* state = states_ + slot * slot_words_;
    std::memset(state, 0, slot_words_ * 4);
    const int64_t padded = int64_t(model_.dim_blocks) * LANES;
    for (int32_t l = 0; l < model_.num_layers; ++l) {
        float* peak = layer_sums(model_, state, l) + 2 * padded;
        std::fill(peak, peak + padded, EMPTY_PEAK);
    }
    slots_[slot].position = 0;
    slots_[slot].recent = no_recent();
    slots_[slot].sampler = {std::vector<int32_t>(model_.vocab_size), std::vector<uint8_t>(model_.vocab_size), 0};
}

void Runtime::copy(int32_t source, int32_t target) {
    if (source == target) return;
    std::memcpy(states_ + target * slot_words_, states_ + source * slot_words_, slot_words_ * 4);
    slots_[target] = slots_[source];
}

void Runtime::write(int32_t slot, const void* state, int64_t position, Sampler sampler, Recent recent) {
    std::memcpy(states_ + slot * slot_words_, state, slot_words_ * 4);
    slots_[slot] = {position, std::move(sampler), std::move(recent)};
}

// The tokens so many places before the one that comes next: the last is at 1.
void Runtime::look_back(const Recent& recent, Row& row) const {
    int32_t count = 0;
    const uint16_t* tokens = recent.window_at(recent.end(), count);
    for (int32_t i = 0; i < model_.lookbacks; ++i) {
        const int64_t distance = lookback_[i] ? lookback_[i] : mirrored(row.position);
        row.before[i] = 0 < distance && distance <= count ? tokens[count - distance] : -1;
    }
}

// How many places before what comes after a position its mirror image in its row stands; 0 or less where it is to come.
int64_t Runtime::mirrored(int64_t position) const {
    const int64_t place = std::max<int64_t>(position - model_.raster_first, 0);
    const int64_t column = place / model_.raster_channels % model_.raster_width;
    return (2 * column - (model_.raster_width - 1)) * model_.raster_channels;
}

void Runtime::set_match(Match match) {
    match_ = std::move(match);
    for (Slot& slot : slots_) slot.recent = no_recent();
}

int32_t Runtime::remembered() const {
    int32_t longest = match_.window;
    for (int32_t i = 0; i < model_.lookbacks; ++i)
        longest = std::max(longest, lookback_[i] ? lookback_[i] : (model_.raster_width - 1) * model_.raster_channels);
    return longest;
}

// A pass feeds up to MAX_ROWS tokens before the logits after the first of them are mixed.
Recent Runtime::no_recent() const { return remembered() ? Recent(remembered(), MAX_ROWS) : Recent(); }

float* Runtime::logits_row(int32_t row) const {
    return buffers_.logits + int64_t(row) * model_.vocab_blocks * LANES;
}

// ``moments``: what stands before what each row of logits predicts.
void Runtime::pass(const std::vector<Row>& rows, const std::vector<Moment>& moments) {
    finished_.clear();
    places_.clear();
    for (size_t r = 0; r < rows.size(); ++r) {
        const bool last = r + 1 == rows.size() || rows[r + 1].state != rows[r].state;
        const bool read = model_.token_shift && (last || rows[r + 1].logits >= 0);
        if (rows[r].logits < 0 && !read) continue;
        finished_.push_back(rows[r]);
        places_.push_back(int32_t(r));
    }
    const Pass pass{rows.data(), int32_t(rows.size()), finished_.data(), places_.data(), int32_t(finished_.size()),
                    int32_t(moments.size())};
    pool_.run([&](int thread) {
        const Team team{thread, pool_.threads(), [](void* pool) { static_cast<Pool*>(pool)->barrier(); }, &pool_};
        target_.forward(model_, pass, buffers_, team);
        if (!match_) return;
        for (size_t i = thread; i < moments.size(); i += pool_.threads())
            match_.mix(target_, logits_row(int32_t(i)), model_.vocab_size, moments[i]);
    });
}

std::vector<Done> Runtime::run(const std::vector<Job>& jobs) {
    std::vector<Done> done(jobs.size());
    const int32_t vocab = model_.vocab_size;
    struct Live {
        size_t job;
        int32_t row;    // of the logits to draw from
        int32_t guide;  // of its guide's, or -1
    };
    std::vector<Live> live;

    auto draw_one = [&](const Live& at, std::vector<double>& scratch) {
        const Job& job = jobs[at.job];
        Done& result = done[at.job];
        Slot& slot = slots_[job.slot];
        const float* logits = logits_row(at.row);
        const int32_t* states = job.draw.automaton;
        const int32_t* allowed = states ? states + int64_t(slot.sampler.automaton_state) * vocab : nullptr;
        scratch.assign(logits, logits + vocab);
        if (at.guide >= 0) {
            const float* less = logits_row(at.guide);
            for (int32_t i = 0; i < vocab; ++i) scratch[i] = less[i] + job.draw.guide.weight * (scratch[i] - less[i]);
        }
        const int32_t token =
            draw(*target_.probability, scratch, job.draw.params, slot.sampler, allowed, slot.position);
        if (token < 0) {
            result.stopped = Stop::FAULT;
            return;
        }
        const Normaliser own = target_.probability->normalise(logits, vocab);
        result.drawn.push_back(token);
        result.logprobs.push_back(logprob(own, logits[token]));
        if (job.draw.top) {
            std::vector<int32_t> order(vocab);
            for (int32_t i = 0; i < vocab; ++i) order[i] = i;
            const int32_t count = std::min(job.draw.top, vocab);
            std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](int32_t a, int32_t b) {
                return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
            });
            auto& top = result.top.emplace_back();
            for (int32_t i = 0; i < count; ++i) top.emplace_back(order[i], logprob(own, logits[order[i]]));
        }
        slot.sampler.counts[token] += 1;
        slot.sampler.seen[token] = 1;
        if (states) {
            slot.sampler.automaton_state = allowed[token];
            if (allowed[token] == 1) result.stopped = Stop::ACCEPT;
        }
        if (result.stopped == Stop::NONE && slot.position == max_position_) result.stopped = Stop::LENGTH;
    };
    auto draw_all = [&] {
        if (live.size() < 8) {  // waking others would take longer
            for (const Live& at : live) draw_one(at, draw_scratch_[0]);
            return;
        }
        pool_.run([&](int thread) {
            for (size_t i = thread; i < live.size(); i += pool_.threads()) draw_one(live[i], draw_scratch_[thread]);
        });
    };

    // all given tokens; a job's last logits are drawn from at once, while the pass that made them is at hand
    struct Want {
        size_t job, index;
        int32_t row;
    };
    std::vector<Row> rows;
    std::vector<Moment> moments;
    std::vector<Want> wanted;
    std::vector<Live> drawn_in_pass;
    std::vector<size_t> going;
    auto flush = [&] {
        if (rows.empty()) return;
        pass(rows, moments);
        for (const Want& want : wanted) {
            const Job& job = jobs[want.job];
            const float* logits = logits_row(want.row);
            if (!job.targets.empty())
                done[want.job].target_logprobs.push_back(
                    logprob(target_.probability->normalise(logits, vocab), logits[job.targets[want.index]]));
            const bool last = want.index + 1 == job.tokens.size();
            if (job.logits == Logits::ALL || (job.logits == Logits::LAST && last))
                done[want.job].logits.insert(done[want.job].logits.end(), logits, logits + vocab);
        }
        live = drawn_in_pass;
        draw_all();
        for (const Live& at : live)
            if (done[at.job].stopped == Stop::NONE && int32_t(done[at.job].drawn.size()) < jobs[at.job].draw.max_new)
                going.push_back(at.job);
        rows.clear();
        moments.clear();
        wanted.clear();
        drawn_in_pass.clear();
    };
    // one position more of a slot; the row of its logits, where they are wanted
    auto feed = [&](int32_t number, int32_t token, bool logits) {
        Slot& slot = slots_[number];
        const int32_t row = logits ? int32_t(moments.size()) : -1;
        Row& added = rows.emplace_back(Row{states_ + number * slot_words_, slot.position, token, row, {}});
        slot.position += 1;
        slot.recent.push(token);
        if (model_.lookbacks) look_back(slot.recent, added);
        if (logits) moments.push_back({&slot.recent, slot.recent.end()});
        slot.sampler.seen[token] = 1;
        return row;
    };
    // first what guides read before their last token: in passes of their own, for rows of one slot stand together
    for (const Job& job : jobs)
        for (size_t i = 0; job.draws && i + 1 < job.draw.guide.tokens.size(); ++i) {
            feed(job.draw.guide.slot, job.draw.guide.tokens[i], false);
            if (int32_t(rows.size()) == MAX_ROWS) flush();
        }
    flush();
    for (size_t j = 0; j < jobs.size(); ++j) {
        const Job& job = jobs[j];
        const Guide& guide = job.draw.guide;
        const bool guided = job.draws && guide;
        for (size_t i = 0; i < job.tokens.size(); ++i) {
            const bool last = i + 1 == job.tokens.size();
            const bool logits = !job.targets.empty() || job.logits == Logits::ALL ||
                                (last && (job.draws || job.logits == Logits::LAST));
            if (last && guided && int32_t(rows.size()) + 2 > MAX_ROWS) flush();  // both are drawn from together
            const int32_t row = feed(job.slot, job.tokens[i], logits);
            if (logits) wanted.push_back({j, i, row});
            if (last && job.draws)
                drawn_in_pass.push_back({j, row, guided ? feed(guide.slot, guide.tokens.back(), true) : -1});
            if (int32_t(rows.size()) == MAX_ROWS) flush();
        }
    }
    flush();

    // then one token a live job, until every burst has ended
    while (!going.empty()) {
        live.clear();
        for (size_t j : going) {
            const int32_t token = done[j].drawn.back(), row = feed(jobs[j].slot, token, true);
            const Guide& guide = jobs[j].draw.guide;
            live.push_back({j, row, guide ? feed(guide.slot, token, true) : -1});
        }
        pass(rows, moments);
        rows.clear();
        moments.clear();
        draw_all();
        std::erase_if(going, [&](size_t j) {
            return done[j].stopped != Stop::NONE || int32_t(done[j].drawn.size()) >= jobs[j].draw.max_new;
        });
    }
    return done;
}

}  // namespace aft
