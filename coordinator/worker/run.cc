#include "coordinator/worker/run.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iostream>

#include "common/core/clock.h"
#include "common/core/documents.h"
#include "common/core/sha256.h"
#include "common/core/units.h"
#include "common/gguf/gguf.h"
#include "common/process/process.h"
#include "coordinator/worker/blas.h"
#include "coordinator/worker/data.h"
#include "coordinator/worker/evaluate.h"
#include "coordinator/worker/network.h"
#include "coordinator/worker/optimise.h"
#include "coordinator/worker/plan.h"
#include "coordinator/worker/progress.h"
#include "coordinator/worker/prune.h"
#include "coordinator/worker/quantize.h"
#include "coordinator/worker/teacher_cache.h"

#ifndef RETORT_VERSION
#define RETORT_VERSION "0.1.0"
#endif

namespace retort {

std::atomic<bool> run_interrupted{false};

namespace {

namespace fs = std::filesystem;

constexpr double kSlowBlas = 20e9;
/// Share of the matrix product's rate that whole training steps reach (measured on two cores: 90 of 180
/// GFLOP/s).
constexpr double kTrainingShare = 0.5;

std::uint64_t free_memory() {
  std::uint64_t limit = memory_allowance_bytes();
  if (const auto text = read_file("/proc/meminfo", 1 << 16)) {
    const std::size_t at = text->find("MemAvailable:");
    if (at != std::string::npos)
      limit = std::min<std::uint64_t>(limit, std::stoull(text->substr(at + 13)) * 1024);
  }
  return limit;
}

std::uint64_t file_bytes(const fs::path& path) {
  std::error_code error;
  const auto size = fs::file_size(path, error);
  return error ? 0 : size;
}

/// Of a folder's safetensors: the file's own hash, or the hash of the shards' hashes.
Result<std::string> weights_sha256(const fs::path& folder) {
  if (fs::exists(folder / "model.safetensors")) return sha256_file_hex(folder / "model.safetensors");
  std::vector<fs::path> shards;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().extension() == ".safetensors") shards.push_back(entry.path());
  std::sort(shards.begin(), shards.end());
  std::string all;
  for (const fs::path& shard : shards) all += RETORT_TRY(sha256_file_hex(shard));
  return sha256_hex(all);
}

Result<fs::path> find_serve(const fs::path& given) {
  if (!given.empty()) {
    if (::access(given.c_str(), X_OK) == 0) return given;
  } else {
    std::error_code error;
    const fs::path beside = fs::read_symlink("/proc/self/exe", error).parent_path() / "retort-serve";
    if (::access(beside.c_str(), X_OK) == 0) return beside;
    std::string list = std::getenv("PATH") != nullptr ? std::getenv("PATH") : "";
    for (std::size_t at = 0; at <= list.size();) {
      const std::size_t end = std::min(list.find(':', at), list.size());
      const fs::path candidate = fs::path(list.substr(at, end - at)) / "retort-serve";
      if (end > at && ::access(candidate.c_str(), X_OK) == 0) return candidate;
      at = end + 1;
    }
  }
  return fail(ErrorCode::kNotFound, given.empty() ? "retort-serve" : given.string(),
              "the program that judges exported files is not there; name it with --serve-binary, or take "
              "held_out out "
              "of the recipe");
}

/// A full disk is no verdict on the recipe: there may be room again later, so it becomes kUnavailable and the
/// run, which leaves no result then, goes on from its last checkpoint.
Result<void> on_disk(Result<void> written) {
  if (written || written.error().code != ErrorCode::kOutOfBudget) return written;
  return fail(ErrorCode::kUnavailable, written.error().where,
              "{}; the last checkpoint is whole: make room and run again", written.error().message);
}

class Run {
 public:
  Run(const RunOptions& options, Recipe recipe, Progress& progress)
      : options_(options), recipe_(std::move(recipe)), progress_(progress), out_(options.out) {}

  /// Everything that can be refused before work begins.
  Result<Plan> prepare(double matrix_rate) {
    if (!recipe_.teacher.empty()) {
      teacher_model_ = RETORT_TRY(open_hf_model(recipe_.teacher));
      if (teacher_model_->config.is_encoder())
        return fail(ErrorCode::kUnsupported, recipe_.where,
                    "'{}' is an encoder; only decoders are trained yet", recipe_.teacher.string());
      teacher_sha256_ = RETORT_TRY(weights_sha256(recipe_.teacher));
      tokenizer_ = teacher_model_->tokenizer;
      tokenizer_folder_ = recipe_.teacher;
      start_ = teacher_model_->config;
    }
    const auto* first = std::get_if<OptimisePass>(&recipe_.passes[0]);
    if (first != nullptr && first->init) {
      Tokenizer own = RETORT_TRY(Tokenizer::from_huggingface(first->init->tokenizer / "tokenizer.json"));
      if (tokenizer_ && own.vocabulary_size() != teacher_model_->config.n_vocab)
        return fail(ErrorCode::kInvalid, recipe_.where,
                    "the student's tokenizer has {} tokens, the teacher's vocabulary {}: a student can only "
                    "learn from "
                    "a teacher that shares its vocabulary",
                    own.vocabulary_size(), teacher_model_->config.n_vocab);
      if (tokenizer_)
        for (TokenId id = 0; id < static_cast<TokenId>(own.vocabulary_size()); ++id)
          if (own.piece(id) != tokenizer_->piece(id))
            return fail(
                ErrorCode::kInvalid, recipe_.where,
                "token {} is '{}' in the student's tokenizer and '{}' in the teacher's: a student can only "
                "learn from a teacher that shares its vocabulary",
                id, own.piece(id), tokenizer_->piece(id));
      tokenizer_folder_ = first->init->tokenizer;
      start_ = init_config(*first->init, own.vocabulary_size(), own.bos(), own.eos());
      tokenizer_ = std::move(own);
    }
    RETORT_TRY(validate(start_, recipe_.where));
    plan_ = RETORT_TRY(make_plan(recipe_, start_, teacher_model_ ? &teacher_model_->config : nullptr,
                                 recipe_.train ? file_bytes(recipe_.train->file) : 0,
                                 file_bytes(tokenizer_folder_ / "tokenizer.json")));
    flops_per_second_ = matrix_rate * kTrainingShare;
    return plan_;
  }

  Result<void> check_memory() const {
    const std::uint64_t limit = options_.memory_limit.value_or(free_memory());
    if (plan_.peak_bytes <= limit) return {};
    return fail(
        ErrorCode::kOutOfBudget, recipe_.where,
        "this recipe needs about {} of memory ({} bytes), and there are {}; make batch_tokens or the context "
        "smaller, or give --memory-limit where more is free",
        format_bytes(plan_.peak_bytes), plan_.peak_bytes, format_bytes(limit));
  }

  double flops_per_second() const { return flops_per_second_; }

  Result<json::array> execute() {
    RETORT_TRY(load_state());
    if (recipe_.held_out) {
      bool judges = false;
      for (const Pass& pass : recipe_.passes) {
        const auto* out = std::get_if<ExportPass>(&pass);
        judges |= out != nullptr && !out->huggingface;
      }
      if (judges) serve_ = RETORT_TRY(find_serve(options_.serve_binary));
      held_out_ = RETORT_TRY(read_documents(recipe_.held_out->file, recipe_.held_out->limit_documents));
    }
    data_sha256_ = recipe_.train      ? RETORT_TRY(sha256_file_hex(recipe_.train->file))
                   : recipe_.held_out ? RETORT_TRY(sha256_file_hex(recipe_.held_out->file))
                                      : "";
    if (!state_.data_sha256.empty() && state_.data_sha256 != data_sha256_)
      return fail(ErrorCode::kConflict, out_.string(),
                  "the training data has changed since this run began; start anew in another folder");
    state_.data_sha256 = data_sha256_;
    if (teacher_model_) teacher_ = RETORT_TRY(load_network(*teacher_model_));
    RETORT_TRY(load_weights());
    for (; state_.pass < recipe_.passes.size();) {
      const std::size_t index = state_.pass;
      progress_.emit("pass_start", {{"pass", pass_name(recipe_.passes[index])},
                                    {"pass_index", index},
                                    {"pass_count", recipe_.passes.size()},
                                    {"model", describe(network_.config)},
                                    {"parameters", parameter_count(network_.config)},
                                    {"resumed_at_step", state_.step}});
      RETORT_TRY(check_stop());
      RETORT_TRY(std::visit([&](const auto& pass) { return run(index, pass); }, recipe_.passes[index]));
    }
    return state_.artifacts;
  }

 private:
  struct State {
    std::size_t pass = 0;
    std::uint64_t step = 0;
    std::uint64_t steps = 0;  ///< of the pass in hand, when DIR/finish made it shorter; 0: as planned
    std::string checkpoint;   ///< file name; empty: the starting weights
    std::string data_sha256;
    json::array artifacts;
  };

  Result<void> check_stop() {
    std::error_code error;
    if (fs::exists(out_ / "cancel", error))
      return fail(ErrorCode::kCancelled, out_.string(), "cancelled on request");
    if (run_interrupted) return fail(ErrorCode::kCancelled, out_.string(), "interrupted; run again to go on");
    return {};
  }

  Result<void> load_state() {
    const fs::path path = out_ / "state.json";
    if (fs::exists(path)) {
      const json::value value = RETORT_TRY(parse_json(RETORT_TRY(read_file(path)), path.string()));
      const json::object& object = *RETORT_TRY(as_object(value, path.string()));
      const std::string recipe = RETORT_TRY(json_string(object, "recipe_sha256", path.string()));
      const std::string teacher = RETORT_TRY(json_string(object, "teacher_sha256", path.string()));
      if (recipe != recipe_.sha256 || teacher != teacher_sha256_)
        return fail(ErrorCode::kConflict, out_.string(),
                    "this folder holds an unfinished run of another {}; give another --out, or empty it",
                    recipe != recipe_.sha256 ? "recipe" : "teacher");
      state_.pass = RETORT_TRY(json_uint(object, "pass", path.string(), recipe_.passes.size()));
      state_.step = RETORT_TRY(json_uint(object, "step", path.string()));
      state_.steps = RETORT_TRY(json_uint(object, "steps", path.string()));
      state_.checkpoint = RETORT_TRY(json_string(object, "checkpoint", path.string()));
      state_.data_sha256 = RETORT_TRY(json_string(object, "data_sha256", path.string()));
      state_.artifacts = *RETORT_TRY(json_array(object, "artifacts", path.string()));
      const std::uint64_t threads = RETORT_TRY(json_uint(object, "threads", path.string()));
      if (threads != static_cast<std::uint64_t>(options_.threads))
        progress_.warning(
            fmt::format("this run began with {} threads and goes on with {}: sums are added in another "
                        "order, so the result is not bit for bit that of an unbroken run",
                        threads, options_.threads));
    }
    for (const auto& entry : fs::directory_iterator(out_)) {  // what a crash left behind
      const std::string name = entry.path().filename().string();
      if (name.starts_with("checkpoint-") && name != state_.checkpoint &&
          entry.path() != encoded_file(state_.checkpoint))
        fs::remove(entry.path());
    }
    return {};
  }

  Result<void> load_weights() {
    ModelConfig config = state_.pass == 0 ? start_ : plan_.passes[state_.pass - 1].after;
    if (state_.checkpoint.empty()) {
      const auto* first = std::get_if<OptimisePass>(&recipe_.passes[0]);
      // The teacher's tensors are the student's too, until a pass gives it its own.
      network_ = first != nullptr && first->init ? random_network(start_, recipe_.seed) : *teacher_;
      return {};
    }
    const Safetensors file = RETORT_TRY(Safetensors::open(out_ / state_.checkpoint));
    network_ = RETORT_TRY(load_network(config, file, "w."));
    for (const auto& [name, tensor] : file.tensors())  // a hidden-state loss's projections
      if (name.starts_with("w.distil.")) {
        at::Tensor values =
            at::empty(std::vector<std::int64_t>(tensor.shape.begin(), tensor.shape.end()), at::kFloat);
        tensor.read_f32(0, {values.data_ptr<float>(), static_cast<std::size_t>(values.numel())});
        network_.weights.emplace(name.substr(2), std::move(values));
      }
    RETORT_TRY(load_encoded(state_.checkpoint));
    for (std::size_t i = 0; i < state_.pass; ++i)
      if (const auto* zeros = std::get_if<SparsePass>(&recipe_.passes[i])) {
        const auto names = RETORT_TRY(sparse_matrices(config, *zeros, recipe_.where));
        network_.sparse.insert(names.begin(), names.end());
      }
    moments_ = {};
    for (const auto& [name, tensor] : network_.weights)
      for (const auto& [prefix, where] :
           {std::pair{"m.", &moments_.first}, std::pair{"v.", &moments_.second}})
        if (const SafeTensor* found = file.find(prefix + name)) {
          at::Tensor values = at::empty(tensor.sizes(), at::kFloat);
          found->read_f32(0, {values.data_ptr<float>(), static_cast<std::size_t>(values.numel())});
          where->emplace(name, std::move(values));
        }
    return {};
  }

  Result<void> save_state() {
    const json::object object{{"recipe_sha256", recipe_.sha256},
                              {"teacher_sha256", teacher_sha256_},
                              {"data_sha256", data_sha256_},
                              {"threads", options_.threads},
                              {"pass", state_.pass},
                              {"step", state_.step},
                              {"steps", state_.steps},
                              {"checkpoint", state_.checkpoint},
                              {"artifacts", state_.artifacts}};
    return on_disk(write_file_atomic(out_ / "state.json", pretty_json(object)));
  }

  /// Weights and moments, then the state that names them, then the old file goes: a crash at any moment
  /// leaves a whole pair.
  Result<void> save_checkpoint() {
    const std::string name = fmt::format("checkpoint-{}-{}.safetensors", state_.pass, state_.step);
    std::vector<TensorSource> all = sources_of(network_.weights, "w.");
    for (const auto& [prefix, moments] :
         {std::pair{"m.", &moments_.first}, std::pair{"v.", &moments_.second}}) {
      std::vector<TensorSource> more = sources_of(*moments, prefix);
      std::move(more.begin(), more.end(), std::back_inserter(all));
    }
    RETORT_TRY(save_encoded(name));
    RETORT_TRY(on_disk(write_safetensors(out_ / name, all, SafeTensor::DType::kF32)));
    const std::string old = std::exchange(state_.checkpoint, name);
    if (auto saved = save_state(); !saved) {
      state_.checkpoint = old;
      return saved;
    }
    std::error_code ignored;
    if (!old.empty() && old != name) {
      fs::remove(out_ / old, ignored);
      fs::remove(encoded_file(old), ignored);
    }
    return {};
  }

  /// Where a checkpoint's encoded matrices stand: a GGUF with Hugging Face's names, beside it.
  fs::path encoded_file(const std::string& checkpoint) const { return out_ / (checkpoint + ".gguf"); }

  Result<void> save_encoded(const std::string& checkpoint) {
    if (network_.encoded.empty()) return {};
    GgufWriter writer;
    for (const auto& [name, matrix] : network_.encoded)
      writer.add_matrix(name, matrix.columns, matrix.rows, matrix.type,
                        [&matrix = matrix]() -> Result<std::vector<std::byte>> { return matrix.bytes; });
    return on_disk(writer.write(encoded_file(checkpoint)));
  }

  Result<void> load_encoded(const std::string& checkpoint) {
    std::error_code ignored;
    if (!fs::exists(encoded_file(checkpoint), ignored)) return {};
    const GgufFile file = RETORT_TRY(GgufFile::open(encoded_file(checkpoint)));
    for (const GgufTensor& tensor : file.tensors())
      network_.encoded.emplace(
          tensor.name,
          EncodedMatrix{
              tensor.type, tensor.rows(), tensor.columns(), {tensor.data.begin(), tensor.data.end()}});
    return {};
  }

  Result<void> pass_done(bool weights_changed) {
    ++state_.pass;
    state_.step = state_.steps = 0;
    moments_ = {};
    return weights_changed ? save_checkpoint() : save_state();
  }

  Result<void> need_stream() {
    if (stream_) return {};
    stream_ = RETORT_TRY(TokenStream::make(
        RETORT_TRY(read_documents(recipe_.train->file, recipe_.train->limit_documents)), *tokenizer_));
    return {};
  }

  Result<TeacherOutputsKey> outputs_key(const Mixture& mixture, std::uint32_t window) {
    TeacherOutputsKey key;
    key.teacher_sha256 = teacher_sha256_;
    key.tokenizer_sha256 = RETORT_TRY(sha256_file_hex(recipe_.teacher / "tokenizer.json"));
    key.data_sha256 = data_sha256_;
    key.limit_documents = recipe_.train->limit_documents;
    key.windows = stream_->windows(window);
    key.window = window;
    key.vocabulary = teacher_->config.n_vocab;
    key.outputs = mixture.outputs;
    key.k = mixture.k;
    key.temperature = mixture.temperature;
    if (mixture.outputs == TeacherOutputs::kSampled) key.seed = recipe_.seed;
    return key;
  }

  /// A cache that cannot be had costs time and no more.
  std::optional<TeacherCache> open_cache(const TeacherOutputsKey& key) {
    if (options_.cache.empty()) return std::nullopt;
    Result<TeacherCache> cache = TeacherCache::open(options_.cache, key, options_.cache_limit);
    if (cache) return std::move(*cache);
    progress_.warning("the teacher's outputs are computed anew: " + cache.error().describe());
    return std::nullopt;
  }

  Result<void> run(std::size_t index, const OptimisePass& pass) {
    RETORT_TRY(need_stream());
    if (teacher_)  // steps are in place
      for (auto& [name, tensor] : network_.weights) {
        const auto found = teacher_->weights.find(name);
        if (found != teacher_->weights.end() && tensor.is_same(found->second)) tensor = tensor.clone();
      }
    const std::uint32_t window = stream_->window_length(window_of(pass, network_.config));
    const std::uint32_t windows = windows_per_step(pass, window);
    const std::uint64_t per_step = std::uint64_t{windows} * window;
    std::uint64_t steps =
        state_.steps != 0 ? state_.steps : std::max<std::uint64_t>(1, pass.tokens / per_step);
    // Counted among the training passes, so that recipes that differ in the cuts before read the same windows
    // in the same order, and share a cache of the teacher's outputs.
    const auto trainings = static_cast<std::uint64_t>(
        std::count_if(recipe_.passes.begin(), recipe_.passes.begin() + static_cast<std::ptrdiff_t>(index),
                      [](const Pass& p) { return std::holds_alternative<OptimisePass>(p); }));
    const std::uint64_t seed = recipe_.seed * 1000003 + trainings;
    using Time = std::chrono::steady_clock;
    const auto since = [](Time::time_point then) {
      return std::chrono::duration<double>(Time::now() - then).count();
    };
    std::optional<Teacher> teacher;
    std::optional<TeacherCache> cache;
    if (pass.distil) {
      teacher.emplace(Teacher{*teacher_, {}});
      if (pass.distil->outputs != TeacherOutputs::kFull) {
        teacher->key = RETORT_TRY(outputs_key(*pass.distil, window));
        cache = open_cache(teacher->key);
        teacher->cache = cache ? &*cache : nullptr;
      }
      if (pass.distil->hidden > 0) add_projections(network_, teacher_->config, seed);
    }
    RunawayLoss runaway;
    Time::time_point saved = Time::now(), told = {}, mark = Time::now();
    std::uint64_t mark_step = state_.step;
    double rate = 0;
    std::error_code ignored;
    while (state_.step < steps) {
      if (const auto stop = check_stop(); !stop) {
        RETORT_TRY(save_checkpoint());
        return stop;
      }
      if (pass.schedule == OptimisePass::Schedule::kWsd && state_.steps == 0 &&
          fs::exists(out_ / "finish", ignored)) {
        const auto fall = static_cast<std::uint64_t>(pass.decay / (1 - std::min(pass.decay, 0.9)) *
                                                     static_cast<double>(state_.step));
        steps = state_.steps = std::min(steps, state_.step + std::max<std::uint64_t>(1, fall));
        RETORT_TRY(save_checkpoint());
      }
      const StepReport report = optimise_step(network_, moments_, teacher ? &*teacher : nullptr, *stream_,
                                              pass, seed, state_.step, steps, window, windows);
      runaway.add(std::isfinite(report.loss) ? report.loss : 0);
      if (!std::isfinite(report.loss) || runaway.gone())
        return fail(ErrorCode::kInvalid, recipe_.where, "{}: at step {} the {}; lower learning_rate{}",
                    pass.name, state_.step,
                    std::isfinite(report.loss) ? fmt::format("loss has run away, to {:.2f} from {:.2f}",
                                                             runaway.mean(), runaway.least())
                                               : "loss or its gradient is not a number any more",
                    state_.checkpoint.empty() ? std::string()
                                              : ". " + state_.checkpoint + " holds the last good weights");
      ++state_.step;
      const bool first = state_.step == mark_step + 1 && rate == 0, last = state_.step == steps;
      if (since(mark) > 5 || first || last) {
        rate = static_cast<double>((state_.step - mark_step) * per_step) / std::max(1e-9, since(mark));
        if (!first) mark = Time::now(), mark_step = state_.step;
      }
      if (first || last || since(told) >= 1) {
        told = Time::now();
        progress_.emit("progress",
                       {{"pass", pass_name(recipe_.passes[index])},
                        {"pass_index", index},
                        {"pass_count", recipe_.passes.size()},
                        {"step", state_.step},
                        {"steps", steps},
                        {"tokens", state_.step * per_step},
                        {"token_budget", steps * per_step},
                        {"loss", report.loss},
                        {"learning_rate", report.learning_rate},
                        {"tokens_per_second", rate},
                        {"seconds_left", static_cast<double>((steps - state_.step) * per_step) / rate}});
      }
      if (!last && since(saved) >= pass.checkpoint_seconds && !runaway.rising()) {
        RETORT_TRY(save_checkpoint());
        saved = Time::now();
      }
    }
    for (auto& [name, tensor] : network_.weights) tensor = tensor.detach();
    drop_projections(network_);
    if (teacher && pass.distil->outputs != TeacherOutputs::kFull)
      progress_.emit("teacher_outputs",
                     {{"pass_index", index},
                      {"windows_computed", teacher->forwards},
                      {"windows_used", steps * windows},
                      {"cache", cache ? json::value(cache->path().string()) : json::value(nullptr)}});
    fs::remove(out_ / "finish", ignored);
    return pass_done(true);
  }

  Result<void> run(std::size_t index, const PrunePass& pass) {
    std::optional<ActivationStatistics> statistics;
    if (pass.activation) {
      torch::NoGradGuard no_grad;
      Trace trace;
      trace.statistics = &statistics.emplace();
      for (const at::Tensor& ids : RETORT_TRY(calibration(index, pass.calibration_tokens))) {
        RETORT_TRY(check_stop());
        forward(network_, ids, &trace);
      }
    }
    network_ = prune(network_, plan_.passes[index].after, statistics ? &*statistics : nullptr);
    return pass_done(true);
  }

  Result<void> run(std::size_t index, const SparsePass& pass) {
    std::vector<at::Tensor> text;
    if (pass.wanda) text = RETORT_TRY(calibration(index, pass.calibration_tokens));
    const auto names = RETORT_TRY(sparse_matrices(network_.config, pass, recipe_.where));
    RETORT_TRY(sparsify(network_, pass, names, text, [&] { return check_stop(); }));
    json::array tensors;
    double zeros = 0, values = 0;
    for (const std::string& name : names) {
      const at::Tensor& weight = network_.weight(name);
      const double gone = weight.eq(0).sum().item<double>(), all = static_cast<double>(weight.numel());
      tensors.push_back(json::object{{"tensor", name}, {"sparsity", gone / all}});
      zeros += gone, values += all;
    }
    progress_.emit("sparsified",
                   {{"pass_index", index},
                    {"sparsity", zeros / values},
                    {"share_of_model", zeros / static_cast<double>(parameter_count(network_.config))},
                    {"tensors", std::move(tensors)}});
    return pass_done(true);
  }

  /// Token ids [batch, window] of the training text, at least `tokens` of them as far as it goes.
  Result<std::vector<at::Tensor>> calibration(std::size_t index, std::uint64_t tokens) {
    RETORT_TRY(need_stream());
    const std::uint32_t window = stream_->window_length(network_.config.n_ctx);
    const std::uint64_t windows = (std::min(tokens, stream_->tokens()) + window - 1) / window;
    const std::uint64_t batch = calibration_batch(network_.config, window);
    std::vector<std::int64_t> ids(window + 1);
    std::vector<at::Tensor> out;
    for (std::uint64_t first = 0; first < windows; first += batch) {
      const std::uint64_t count = std::min(batch, windows - first);
      out.push_back(at::empty({static_cast<std::int64_t>(count), window}, at::kLong));
      for (std::uint64_t i = 0; i < count; ++i) {
        stream_->window(recipe_.seed * 1000003 + index, first + i, window, ids.data());
        std::copy_n(ids.begin(), window, out.back().data_ptr<std::int64_t>() + i * window);
      }
    }
    return out;
  }

  Result<void> run(std::size_t index, const QuantizePass& pass) {
    std::vector<at::Tensor> text;
    if (pass.needs_calibration())
      text = RETORT_TRY(calibration(index, std::max(pass.needs_statistics() ? pass.calibration_tokens : 0,
                                                    pass.bits ? pass.sensitivity_tokens : 0)));
    json::array tensors;
    std::uint64_t values = 0, bytes = 0;
    for (const QuantizedMatrix& matrix :
         RETORT_TRY(quantize(network_, pass, text, [&] { return check_stop(); }))) {
      json::object line{
          {"tensor", matrix.name},
          {"format", info(matrix.type).name},
          {"bits_per_weight", 8.0 * static_cast<double>(matrix.bytes) / static_cast<double>(matrix.values)},
          {"weight_error", matrix.weight_error}};
      if (matrix.output_error) line["output_error"] = *matrix.output_error;
      if (pass.awq) line["alpha"] = matrix.alpha;
      if (!matrix.sensitivity.empty()) {
        json::object each;
        for (const auto& [type, divergence] : matrix.sensitivity) each[info(type).name] = divergence;
        line["kl_divergence_alone"] = std::move(each);
      }
      tensors.push_back(std::move(line));
      values += matrix.values;
      bytes += matrix.bytes;
    }
    progress_.emit("quantized",
                   {{"pass_index", index},
                    {"bits_per_weight", 8.0 * static_cast<double>(bytes) / static_cast<double>(values)},
                    {"tensors", std::move(tensors)}});
    return pass_done(true);
  }

  Result<void> run(std::size_t, const EvaluatePass& pass) {
    const Evaluation e = evaluate(network_, teacher_ ? &*teacher_ : nullptr, *tokenizer_, held_out_,
                                  recipe_.held_out->max_tokens, [&] { return !check_stop(); });
    RETORT_TRY(check_stop());
    if (e.tokens == 0)
      return fail(ErrorCode::kInvalid, recipe_.held_out->file.string(), "holds no token to predict");
    const double bytes = static_cast<double>(std::max<std::uint64_t>(1, e.bytes)),
                 n = static_cast<double>(e.tokens);
    progress_.emit("evaluation",
                   {{"label", pass.label},
                    {"file", nullptr},
                    {"tokens", e.tokens},
                    {"bytes", e.bytes},
                    {"nll_per_token", e.nll / n},
                    {"perplexity", std::exp(e.nll / n)},
                    {"perplexity_per_byte", std::exp(e.nll / bytes)},
                    {"bits_per_byte", e.nll / bytes / std::log(2.0)},
                    {"kl_divergence", e.divergence ? json::value(*e.divergence) : json::value(nullptr)},
                    {"top1_agreement", e.agreement ? json::value(*e.agreement) : json::value(nullptr)},
                    {"tokens_per_second", n / std::max(1e-9, e.seconds)}});
    return pass_done(false);
  }

  Result<void> run(std::size_t index, const ExportPass& pass) {
    const fs::path path = out_ / pass.file;
    const std::optional<TensorType> rewritten = plan_.passes[index].rewritten;
    const std::uint64_t parameters = parameter_count(network_.config);
    json::object artifact{{"file", pass.file}, {"label", pass.label}};
    fs::path bytes_of = path;
    if (pass.huggingface) {
      RETORT_TRY(on_disk(
          write_hf_model(path, network_.config, weight_sources(network_), pass.dtype, tokenizer_folder_)));
      bytes_of = path / "model.safetensors";
    } else {
      GgufMetadata extra{{"general.name", path.stem().string()},
                         {"retort.recipe.sha256", recipe_.sha256},
                         {"retort.seed", static_cast<std::uint64_t>(recipe_.seed)},
                         {"retort.tool_version", std::string(RETORT_VERSION)}};
      if (!teacher_sha256_.empty()) extra.emplace_back("retort.teacher.sha256", teacher_sha256_);
      if (!data_sha256_.empty()) extra.emplace_back("retort.data.sha256", data_sha256_);
      RETORT_TRY(on_disk(write_gguf_model(path, network_.config, *tokenizer_, weight_sources(network_),
                                          rewritten.value_or(TensorType::kF16), extra,
                                          rewritten ? EncodedWeights{} : network_.encoded)));
      if (pass.also_huggingface)
        RETORT_TRY(on_disk(write_hf_model(out_ / path.stem(), network_.config, weight_sources(network_),
                                          SafeTensor::DType::kF16, tokenizer_folder_)));
    }
    const std::uint64_t bytes = file_bytes(bytes_of);
    artifact["sha256"] = RETORT_TRY(sha256_file_hex(bytes_of));
    artifact["bytes"] = bytes;
    artifact["parameters"] = parameters;
    artifact["bits_per_weight"] = 8.0 * static_cast<double>(bytes) / static_cast<double>(parameters);
    artifact["format"] = plan_.passes[index].format;
    progress_.emit("exported", artifact);
    artifact["evaluation"] = nullptr;
    if (!serve_.empty() && !pass.huggingface) {
      const json::object figures = RETORT_TRY(judge(path));
      json::object event{{"label", pass.label}, {"file", pass.file}};
      for (const auto& member : figures) event[member.key()] = member.value();
      progress_.emit("evaluation", std::move(event));
      artifact["evaluation"] = figures;
    }
    state_.artifacts.push_back(std::move(artifact));
    return pass_done(false);
  }

  /// retort-serve's own figures for a file, against the teacher's GGUF (written once, in F32).
  Result<json::object> judge(const fs::path& file) {
    std::vector<std::string> command{serve_.string(),
                                     "eval",
                                     file.string(),
                                     "--data",
                                     recipe_.held_out->file.string(),
                                     "--threads",
                                     std::to_string(options_.threads)};
    if (recipe_.held_out->max_tokens != 0) {
      command.push_back("--max-tokens");
      command.push_back(std::to_string(recipe_.held_out->max_tokens));
    }
    if (teacher_) {
      const fs::path reference = out_ / "teacher.gguf";
      if (!fs::exists(reference))
        RETORT_TRY(on_disk(write_gguf_model(reference, teacher_->config, teacher_model_->tokenizer,
                                            weight_sources(*teacher_), TensorType::kF32,
                                            {{"general.name", std::string("teacher")}})));
      command.push_back("--teacher");
      command.push_back(reference.string());
    }
    const fs::path answer = out_ / "eval.json", errors = out_ / "eval.stderr";
    std::error_code ignored;
    fs::remove(answer, ignored);
    fs::remove(errors, ignored);
    ProcessSpec spec;
    spec.arguments = command;
    spec.stdout_file = answer;
    spec.stderr_file = errors;
    spec.die_with_parent = true;
    const pid_t child = RETORT_TRY(start_process(spec));
    int status = 0;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR)
      if (run_interrupted) ::kill(child, SIGTERM);
    RETORT_TRY(check_stop());
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
      std::string text = read_file(errors, 1 << 20).value_or("");
      if (text.size() > 500) text = "…" + text.substr(text.size() - 500);
      return fail(ErrorCode::kInternal, file.string(), "retort-serve eval {} {}: {}",
                  WIFEXITED(status) ? "left with status" : "died of signal",
                  WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status), text);
    }
    const json::value value =
        RETORT_TRY(parse_json(RETORT_TRY(read_file(answer, 1 << 20)), "retort-serve eval"));
    fs::remove(answer, ignored);
    fs::remove(errors, ignored);
    return *RETORT_TRY(as_object(value, "retort-serve eval"));
  }

  const RunOptions& options_;
  Recipe recipe_;
  Progress& progress_;
  fs::path out_, serve_, tokenizer_folder_;
  std::optional<HfModel> teacher_model_;
  std::optional<Tokenizer> tokenizer_;
  std::string teacher_sha256_, data_sha256_;
  ModelConfig start_;
  Plan plan_;
  double flops_per_second_ = 1;
  std::vector<std::string> held_out_;
  std::optional<TokenStream> stream_;
  std::optional<Network> teacher_;
  Network network_;
  Moments moments_;
  State state_;
};

json::object error_object(const Error& error) {
  return {{"code", to_string(error.code)}, {"message", error.message}, {"where", error.where}};
}

Result<void> write_result(const RunOptions& options, std::string_view state, const Error* error,
                          const json::array& artifacts, const std::string& recipe_sha256, double seconds) {
  const json::object result{
      {"state", state},
      {"error", error != nullptr ? json::value(error_object(*error)) : json::value(nullptr)},
      {"artifacts", artifacts},
      {"recipe_sha256", recipe_sha256},
      {"seconds", seconds}};
  return write_file_atomic(options.out / "result.json", pretty_json(result));
}

/// Prints the plan; refuses what does not fit.
Result<void> dry_run(const RunOptions& options) {
  SystemClock clock;
  Progress progress(clock, {});
  Recipe recipe = RETORT_TRY(read_recipe(options.recipe));
  if (recipe.train) RETORT_TRY(read_documents(recipe.train->file, 1));
  if (recipe.held_out) RETORT_TRY(read_documents(recipe.held_out->file, 1));
  Run run(options, std::move(recipe), progress);
  const Plan plan = RETORT_TRY(run.prepare(matrix_product_rate()));
  if (options.json)
    std::cout << pretty_json(to_json(plan, run.flops_per_second()));
  else
    std::cout << to_table(plan, run.flops_per_second());
  std::cout.flush();
  return run.check_memory();
}

}  // namespace

int run_recipe(const RunOptions& options) {
  const auto complain = [](const Error& error) {
    std::cerr << "retort-worker: " << error.describe() << std::endl;
    return exit_code(error.code);
  };
  if (options.dry_run) {
    const auto done = dry_run(options);
    return done ? 0 : complain(done.error());
  }
  if (const auto made = make_folders(options.out); !made) return complain(made.error());
  const auto lock = FileLock::take(options.out / "worker.lock");
  if (!lock) return complain(lock.error());
  std::error_code ignored;
  const std::string earlier = read_file(options.out / "result.json").value_or("");
  if (earlier.find("\"succeeded\"") == std::string::npos) fs::remove(options.out / "result.json", ignored);
  const auto begin = std::chrono::steady_clock::now();
  SystemClock clock;
  Progress progress(clock, options.out / "progress.jsonl");
  std::string recipe_sha256;
  const auto work = [&]() -> Result<json::array> {
    Recipe recipe = RETORT_TRY(read_recipe(options.recipe));
    recipe_sha256 = recipe.sha256;
    const double rate = matrix_product_rate();
    if (rate < kSlowBlas)
      progress.warning(
          fmt::format("matrix products run at only {:.1f} GFLOP/s: install libopenblas0-pthread, training "
                      "is 20 to 30 times faster with it",
                      rate / 1e9));
    Run run(options, std::move(recipe), progress);
    const Plan plan = RETORT_TRY(run.prepare(rate));
    RETORT_TRY(run.check_memory());
    progress.emit("plan", to_json(plan, run.flops_per_second()));
    return run.execute();
  };
  Result<json::array> artifacts = [&]() -> Result<json::array> {
    try {
      return work();
    } catch (const std::bad_alloc&) {
      return fail(ErrorCode::kOutOfBudget, "memory",
                  "the system has no more memory to give; make batch_tokens smaller");
    } catch (const std::exception& error) {  // LibTorch's
      std::string text = error.what();
      return fail(text.find("alloc") != std::string::npos ? ErrorCode::kOutOfBudget : ErrorCode::kInternal,
                  "LibTorch", "{}", text.substr(0, text.find('\n')));
    }
  }();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (artifacts) {
    if (const auto written = write_result(options, "succeeded", nullptr, *artifacts, recipe_sha256, seconds);
        !written)
      return complain(on_disk(written).error());
    progress.emit("done", {{"state", "succeeded"}, {"artifacts", artifacts->size()}, {"seconds", seconds}});
    return 0;
  }
  const Error& error = artifacts.error();
  if (run_interrupted) {
    std::cerr << "retort-worker: interrupted; run the same command to go on\n";
    return 130;
  }
  if (error.code == ErrorCode::kUnavailable) return complain(error);  // no result: it goes on later
  if (error.code == ErrorCode::kConflict) return complain(error);  // the folder is another run's: leave it be
  const bool cancelled = error.code == ErrorCode::kCancelled;
  progress.emit("error", error_object(error));
  if (const auto written =
          write_result(options, cancelled ? "cancelled" : "failed", &error, {}, recipe_sha256, seconds);
      !written)
    std::cerr << "retort-worker: " << written.error().describe() << "\n";
  progress.emit("done", {{"state", cancelled ? "cancelled" : "failed"}, {"seconds", seconds}});
  return complain(error);
}

Result<void> inspect_model(const fs::path& folder) {
  const HfModel model = RETORT_TRY(open_hf_model(folder));
  json::array layers;
  for (const LayerShape& layer : model.config.layers)
    layers.push_back(
        json::object{{"heads", layer.n_head}, {"kv_heads", layer.n_head_kv}, {"ffn", layer.n_ff}});
  std::cout << pretty_json(json::object{{"family", to_string(model.config.family)},
                                        {"parameters", parameter_count(model.config)},
                                        {"vocabulary", model.config.n_vocab},
                                        {"context", model.config.n_ctx},
                                        {"hidden", model.config.n_embd},
                                        {"head_dim", model.config.head_dim},
                                        {"layers", std::move(layers)},
                                        {"tied_embeddings", model.config.tied_embeddings},
                                        {"weights_sha256", RETORT_TRY(weights_sha256(folder))}});
  return {};
}

Result<void> check_blas(int threads) {
  const double rate = matrix_product_rate();
  std::cout << pretty_json(
      json::object{{"gflops", rate / 1e9}, {"threads", threads}, {"fast", rate >= kSlowBlas}});
  if (rate >= kSlowBlas) return {};
  return fail(ErrorCode::kUnavailable, "BLAS",
              "a 512×512 product runs at {:.1f} GFLOP/s, below {:.0f}: install libopenblas0-pthread",
              rate / 1e9, kSlowBlas / 1e9);
}

}  // namespace retort
