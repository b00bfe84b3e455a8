// The module ``_kernel``: what Python sees of a Runtime. Values are checked in Python; types and shapes here.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "measure.h"
#include "runtime.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace aft;

namespace {

using Table = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

Tensors tensors_of(const nb::dict& arrays) {
    Tensors tensors;
    for (auto [name, value] : arrays) {
        Tensor tensor;
        nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu> array;
        if (!nb::try_cast(value, array, false))  // never a copy: it would not live as long as the tensor
            throw nb::type_error(("tensor " + nb::cast<std::string>(name) + " is no contiguous array").c_str());
        for (size_t i = 0; i < array.ndim(); ++i) tensor.shape.push_back(int64_t(array.shape(i)));
        if (array.dtype() == nb::dtype<uint16_t>())
            tensor.bf16 = static_cast<const uint16_t*>(array.data());
        else if (array.dtype() == nb::dtype<float>())
            tensor.f32 = static_cast<const float*>(array.data());
        else
            throw nb::type_error(("tensor " + nb::cast<std::string>(name) + " is neither float32 nor bf16").c_str());
        tensors[nb::cast<std::string>(name)] = tensor;
    }
    return tensors;
}

nb::bytes bytes_of(const void* data, size_t size) { return nb::bytes(static_cast<const char*>(data), size); }

class Kernel {
public:
    Kernel(const nb::dict& shape, const nb::dict& arrays, int num_slots, int64_t max_position, int threads,
           const std::string& target)
        : runtime_(
              [&] {
                  auto get = [&](const char* name) { return nb::cast<int32_t>(shape[name]); };
                  Shape made{get("dim"), get("hidden"), get("vocab_size"), get("num_layers"), get("num_heads"),
                               get("window"), get("places"), get("activation"), get("raster_height"),
                               get("raster_width"), get("raster_channels"), get("raster_first"),
                               get("token_shift"), get("mirror"), {}};
                  for (int i = 0; i < MAX_LOOKBACKS; ++i)
                      made.lookback[i] = get(("lookback_" + std::to_string(i)).c_str());
                  return made;
              }(),
              tensors_of(arrays), num_slots, max_position, threads, target) {}

    // Each job: (slot, tokens, targets, logits, draw or None); a draw: (floats, top_k, seed, sample, bias, max_new, top,
    // automaton, guide or None); a guide: (slot, tokens, weight).
    nb::list run(const nb::list& given) {
        std::vector<Job> jobs;
        std::vector<Table> alive;  // the automata must not go while they are used
        for (nb::handle item : given) jobs.push_back(job_of(nb::cast<nb::tuple>(item), alive));
        std::vector<Done> done;
        {
            nb::gil_scoped_release unlocked;
            done = runtime_.run(jobs);
        }
        nb::list results;
        for (const Done& d : done)
            results.append(nb::make_tuple(d.target_logprobs, bytes_of(d.logits.data(), d.logits.size() * 4), d.drawn,
                                          d.logprobs, d.top, int(d.stopped)));
        return results;
    }

    void set_match(int32_t window, int32_t shortest, int32_t most, std::vector<double> masses) {
        if (window < 1 || shortest < 1 || most < 1 || most > MAX_MATCHES || masses.empty())
            throw nb::value_error("a match model needs a window, a shortest length, 1 to 64 matches, and masses");
        runtime_.set_match({window, shortest, most, std::move(masses)});
    }

    nb::bytes recent(int slot) const {
        int32_t count = 0;
        const Recent& recent = runtime_.recent(slot);
        const uint16_t* tokens = recent.window_at(recent.end(), count);
        return bytes_of(tokens, count * 2);
    }

    nb::tuple export_slot(int slot) {
        const Sampler& sampler = runtime_.sampler(slot);
        return nb::make_tuple(bytes_of(runtime_.state(slot), runtime_.state_bytes()),
                              bytes_of(sampler.counts.data(), sampler.counts.size() * 4),
                              bytes_of(sampler.seen.data(), sampler.seen.size()), runtime_.position(slot),
                              sampler.automaton_state);
    }

    void restore(int slot, const nb::bytes& state, const nb::bytes& counts, const nb::bytes& seen, int64_t position,
                 int automaton_state, const nb::bytes& recent) {
        const size_t vocab = runtime_.model().vocab_size;
        if (int64_t(state.size()) != runtime_.state_bytes() || counts.size() != 4 * vocab || seen.size() != vocab)
            throw nb::value_error("the state's parts have other sizes than this model's");
        Sampler sampler;
        const auto* numbers = static_cast<const int32_t*>(counts.data());
        sampler.counts.resize(vocab);
        std::memcpy(sampler.counts.data(), numbers, 4 * vocab);
        const auto* flags = static_cast<const uint8_t*>(seen.data());
        sampler.seen.assign(flags, flags + vocab);
        sampler.automaton_state = automaton_state;
        Recent last = runtime_.no_recent();
        for (size_t i = 0; i + 1 < recent.size(); i += 2) {
            uint16_t token;
            std::memcpy(&token, static_cast<const char*>(recent.data()) + i, 2);
            last.push(token);
        }
        runtime_.write(slot, state.data(), position, std::move(sampler), std::move(last));
    }

    Runtime runtime_;

private:
    Job job_of(const nb::tuple& given, std::vector<Table>& alive) {
        Job job;
        job.slot = nb::cast<int32_t>(given[0]);
        job.tokens = nb::cast<std::vector<int32_t>>(given[1]);
        job.targets = nb::cast<std::vector<int32_t>>(given[2]);
        job.logits = Logits(nb::cast<int>(given[3]));
        if (given[4].is_none()) return job;
        job.draws = true;
        const auto draw = nb::cast<nb::tuple>(given[4]);
        const auto floats = nb::cast<std::vector<double>>(draw[0]);
        Params& p = job.draw.params;
        p.temperature = floats.at(0);
        p.top_p = floats.at(1);
        p.min_p = floats.at(2);
        p.frequency_penalty = floats.at(3);
        p.presence_penalty = floats.at(4);
        p.repetition_penalty = floats.at(5);
        p.top_k = nb::cast<int64_t>(draw[1]);
        p.seed = nb::cast<uint64_t>(draw[2]);
        p.sample = nb::cast<uint32_t>(draw[3]);
        p.logit_bias = nb::cast<std::vector<std::pair<int32_t, double>>>(draw[4]);
        job.draw.max_new = nb::cast<int32_t>(draw[5]);
        job.draw.top = nb::cast<int32_t>(draw[6]);
        if (!draw[7].is_none()) {
            Table table = nb::cast<Table>(draw[7]);
            if (int64_t(table.shape(1)) != runtime_.model().vocab_size ||
                runtime_.sampler(job.slot).automaton_state >= int64_t(table.shape(0)))
                throw nb::value_error("the automaton does not fit the vocabulary or the slot");
            job.draw.automaton = table.data();
            alive.push_back(table);
        }
        if (!draw[8].is_none()) {
            const auto guide = nb::cast<nb::tuple>(draw[8]);
            job.draw.guide = {nb::cast<int32_t>(guide[0]), nb::cast<std::vector<int32_t>>(guide[1]),
                              nb::cast<double>(guide[2])};
        }
        return job;
    }
};

}  // namespace

NB_MODULE(_kernel, m) {
    m.doc() = "The fused recurrent step of an AFT network on CPUs.";
    nb::class_<Kernel>(m, "Kernel")
        .def(nb::init<const nb::dict&, const nb::dict&, int, int64_t, int, const std::string&>(), "shape"_a,
             "tensors"_a, "num_slots"_a, "max_position"_a, "threads"_a, "target"_a)
        .def("run", &Kernel::run, "jobs"_a)
        .def("export", &Kernel::export_slot, "slot"_a)
        .def("restore", &Kernel::restore, "slot"_a, "state"_a, "counts"_a, "seen"_a, "position"_a,
             "automaton_state"_a, "recent"_a)
        .def("recent", &Kernel::recent, "slot"_a)
        .def("set_match", &Kernel::set_match, "window"_a, "shortest"_a, "most"_a, "masses"_a)
        .def("reset", [](Kernel& k, int slot) { k.runtime_.reset(slot); }, "slot"_a)
        .def("restart", [](Kernel& k, int slot) { k.runtime_.sampler(slot).automaton_state = 0; }, "slot"_a)
        .def("copy", [](Kernel& k, int source, int target) { k.runtime_.copy(source, target); }, "source"_a,
             "target"_a)
        .def("position", [](const Kernel& k, int slot) { return k.runtime_.position(slot); }, "slot"_a)
        .def("automaton_state", [](Kernel& k, int slot) { return k.runtime_.sampler(slot).automaton_state; },
             "slot"_a)
        .def_prop_ro("state_bytes", [](const Kernel& k) { return k.runtime_.state_bytes(); })
        .def_prop_ro("workspace_bytes", [](const Kernel& k) { return k.runtime_.workspace_bytes(); })
        .def_prop_ro("weight_bytes", [](const Kernel& k) { return k.runtime_.weight_bytes(); })
        .def_prop_ro("target", [](const Kernel& k) { return std::string(k.runtime_.target()); })
        .def_prop_ro("threads", [](const Kernel& k) { return k.runtime_.threads(); });
    m.def("targets", &usable_targets, "Instruction sets that this build and this processor have, the best first.");
    m.def("bandwidth", &bandwidth, "target"_a, "threads"_a, "bytes"_a, nb::call_guard<nb::gil_scoped_release>());
    m.def("flops", &flops, "target"_a, "threads"_a, nb::call_guard<nb::gil_scoped_release>());
    m.def("uniform", &uniform, "seed"_a, "sample"_a, "position"_a);
    m.def("philox", [](std::vector<uint32_t> counter, uint32_t k, uint32_t m) {
        philox(counter.data(), k, m);
        return counter;
    }, "counter"_a, "k"_a, "m"_a);
}
