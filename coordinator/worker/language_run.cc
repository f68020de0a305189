#include <algorithm>
#include <cmath>

#include "common/core/documents.h"
#include "common/core/sha256.h"
#include "common/gguf/gguf.h"
#include "common/tokenizer/unicode_text.h"
#include "coordinator/worker/activations.h"
#include "coordinator/worker/data.h"
#include "coordinator/worker/evaluate.h"
#include "coordinator/worker/judge.h"
#include "coordinator/worker/masked_text.h"
#include "coordinator/worker/prune.h"
#include "coordinator/worker/quantize.h"
#include "coordinator/worker/recipe_run.h"
#include "coordinator/worker/teacher_cache.h"
#include "coordinator/worker/training.h"
#include "coordinator/worker/vocabulary_cut.h"

namespace retort {
namespace {

namespace fs = std::filesystem;

std::uint64_t file_bytes(const fs::path& path) {
  std::error_code error;
  const auto size = fs::file_size(path, error);
  return error ? 0 : size;
}

/// Bytes as text that JSON can hold: what is not UTF-8, as a piece of a character, becomes '?'.
std::string printable(const std::string& bytes) {
  std::string out;
  for (std::size_t at = 0; at < bytes.size();) {
    const auto [point, length] = code_point(bytes, at);
    out += point < 0 ? "?" : bytes.substr(at, length);
    at += length;
  }
  return out;
}

/// A recipe whose task is language modelling.
class LanguageRun final : public RecipeRun {
 public:
  LanguageRun(const RunOptions& options, Recipe recipe, Progress& progress)
      : RecipeRun(options, std::move(recipe), progress) {}

  Result<Plan> prepare() override {
    if (!recipe_.teacher.empty()) {
      teacher_model_ = RETORT_TRY(open_hf_model(recipe_.teacher));
      if (teacher_model_->config.is_encoder() && !teacher_model_->config.encoder.mlm_head)
        return fail(ErrorCode::kUnsupported, recipe_.where,
                    "'{}' is an encoder without a masked-LM head; classifiers have task: classification",
                    recipe_.teacher.string());
      teacher_sha256_ = RETORT_TRY(weights_sha256(recipe_.teacher));
      teacher_model_sha256_ = RETORT_TRY(model_sha256(recipe_.teacher, teacher_sha256_));
      tokenizer_ = teacher_model_->tokenizer;
      tokenizer_folder_ = recipe_.teacher;
      start_ = teacher_model_->config;
      if (const auto* cut = std::get_if<VocabularyPass>(&recipe_.passes[0]))
        RETORT_TRY(plan_vocabulary(*cut));
      teacher_config_ = start_;
    }
    const auto* first = std::get_if<OptimisePass>(&recipe_.passes[0]);
    if (first != nullptr && first->init) {
      Tokenizer own = RETORT_TRY(Tokenizer::from_huggingface(first->init->tokenizer / "tokenizer.json"));
      if (tokenizer_) RETORT_TRY(same_vocabulary(own, *tokenizer_, recipe_.place(0)));
      tokenizer_folder_ = first->init->tokenizer;
      start_ = init_config(*first->init, own.vocabulary_size(), own.bos(), own.eos());
      start_.encoder.mlm_head = start_.is_encoder();
      if (teacher_model_ && teacher_config_.is_encoder() != start_.is_encoder())
        return fail(ErrorCode::kInvalid, recipe_.place(0),
                    "teacher and student are a {} and a {}: one tells hidden tokens, the other the next",
                    to_string(teacher_config_.family), to_string(start_.family));
      tokenizer_ = std::move(own);
    }
    RETORT_TRY(validate(start_, recipe_.where));
    if (start_.n_ctx < 2)
      return fail(ErrorCode::kInvalid, recipe_.where, "the model's context is {}: no token has one before it",
                  start_.n_ctx);
    if (start_.is_encoder()) RETORT_TRY(check_masked());
    // Wrong text is told before the work begins.
    if (recipe_.train) RETORT_TRY(read_documents(recipe_.train->file, 1));
    if (recipe_.held_out) RETORT_TRY(read_documents(recipe_.held_out->file, 1));
    plan_ = RETORT_TRY(make_plan(recipe_, start_, teacher_model_ ? &teacher_config_ : nullptr,
                                 recipe_.train ? file_bytes(recipe_.train->file) : 0,
                                 file_bytes(tokenizer_folder_ / "tokenizer.json"), options_.threads));
    return plan_;
  }

 private:
  Result<void> begin() override {
    if (recipe_.held_out) {
      bool judges = false;
      for (const Pass& pass : recipe_.passes) {
        const auto* out = std::get_if<ExportPass>(&pass);
        judges |= out != nullptr && !out->huggingface;
      }
      if (judges) serve_ = RETORT_TRY(find_serve(options_.serve_binary));
      held_out_ = RETORT_TRY(read_documents(recipe_.held_out->file, recipe_.held_out->limit_documents));
    }
    if (vocabulary_) RETORT_TRY(take_vocabulary());
    return load_weights();
  }

  Result<void> run_pass(std::size_t index) override {
    return std::visit([&](const auto& pass) { return run(index, pass); }, recipe_.passes[index]);
  }

  /// What a masked language model cannot do.
  Result<void> check_masked() const {
    if (tokenizer_->mask() < 0 || tokenizer_->bos() < 0 || tokenizer_->eos() < 0)
      return fail(ErrorCode::kInvalid, (tokenizer_folder_ / "tokenizer.json").string(),
                  "a masked language model's vocabulary needs [CLS], [SEP] and [MASK]");
    for (std::size_t i = 0; i < recipe_.passes.size(); ++i) {
      const Pass& pass = recipe_.passes[i];
      const auto* optimise = std::get_if<OptimisePass>(&pass);
      if (optimise != nullptr && window_of(*optimise, start_) < 8)
        return fail(ErrorCode::kInvalid, recipe_.place(i),
                    "{}: windows of {} tokens are too short to hide some and leave some to tell them from; "
                    "give a context of at least 8",
                    pass_name(pass), window_of(*optimise, start_));
      if (optimise != nullptr && optimise->distil &&
          (optimise->distil->outputs != TeacherOutputs::kFull || optimise->distil->on_policy > 0 ||
           optimise->distil->teacher_text > 0))
        return fail(ErrorCode::kUnsupported, recipe_.place(i),
                    "{}: a masked language model hides other tokens each time and writes none, so it learns "
                    "by 'teacher_outputs: full', without distil.sequence, 'on_policy' and 'teacher_text'",
                    pass_name(pass));
    }
    return {};
  }

  /// What the training text uses of the teacher's vocabulary, before anything else is planned.
  Result<void> plan_vocabulary(const VocabularyPass& pass) {
    if (start_.is_encoder())
      return fail(ErrorCode::kUnsupported, recipe_.place(0), "prune.vocabulary: not of an encoder yet");
    std::map<TokenId, std::uint64_t> counts;
    RETORT_TRY(visit_tokens(recipe_.train->file, recipe_.train->limit_documents, *tokenizer_,
                            options_.threads, [&](const std::vector<TokenId>& ids) -> Result<void> {
                              for (const TokenId id : ids) ++counts[id];
                              return {};
                            }));
    std::set<TokenId> used;
    for (const auto& [id, count] : counts)
      if (count >= pass.min_count) used.insert(id);
    const fs::path file = recipe_.teacher / "tokenizer.json",
                   config = recipe_.teacher / "tokenizer_config.json";
    vocabulary_ = RETORT_TRY(cut_vocabulary(RETORT_TRY(read_file(file)),
                                            fs::exists(config) ? RETORT_TRY(read_file(config)) : "", used,
                                            file.string()));
    tokenizer_ = RETORT_TRY(Tokenizer::from_huggingface_text(vocabulary_->tokenizer_json,
                                                             vocabulary_->tokenizer_config, file.string()));
    start_.n_vocab = static_cast<std::uint32_t>(vocabulary_->kept.size());
    for (std::int32_t* token : {&start_.bos_token, &start_.eos_token})
      if (*token >= 0) *token = vocabulary_->renamed(*token);
    return {};
  }

  /// The teacher's weights, where there is a teacher: read when a pass wants them, anew after one that let go
  /// of them. It speaks a smaller vocabulary as well: over the tokens that are left, its distribution is what
  /// it was under the condition that none of the others comes.
  Result<void> need_teacher() {
    if (teacher_ || !teacher_model_) return {};
    teacher_ = RETORT_TRY(load_network(*teacher_model_, recipe_.teacher.string()));
    if (vocabulary_) keep_tokens(*teacher_, vocabulary_->kept, start_);
    return {};
  }

  Result<void> take_vocabulary() {
    tokenizer_folder_ = out_ / "tokenizer";
    RETORT_TRY(on_disk(make_folders(tokenizer_folder_)));
    for (const char* name : {"special_tokens_map.json", "chat_template.jinja", "generation_config.json"})
      if (fs::exists(recipe_.teacher / name))
        RETORT_TRY(on_disk(copy_file_atomic(recipe_.teacher / name, tokenizer_folder_ / name)));
    RETORT_TRY(on_disk(write_file_atomic(tokenizer_folder_ / "tokenizer.json", vocabulary_->tokenizer_json)));
    if (!vocabulary_->tokenizer_config.empty())
      RETORT_TRY(on_disk(
          write_file_atomic(tokenizer_folder_ / "tokenizer_config.json", vocabulary_->tokenizer_config)));
    tokenizer_ = RETORT_TRY(Tokenizer::from_huggingface(tokenizer_folder_ / "tokenizer.json"));
    return {};
  }

  Result<void> load_weights() {
    ModelConfig config = out_.state.pass == 0 ? start_ : plan_.passes[out_.state.pass - 1].after;
    if (out_.state.checkpoint.empty()) {
      const auto* first = std::get_if<OptimisePass>(&recipe_.passes[0]);
      if (first != nullptr && first->init)
        return network_ = random_network(start_, recipe_.seed), Result<void>();
      RETORT_TRY(need_teacher());
      network_ = *teacher_;  // its tensors are the student's too, until a pass gives it its own
      return {};
    }
    network_ = {};
    network_.config = config;
    RETORT_TRY(out_.restore(network_, moments_));
    for (std::size_t i = 0; i < out_.state.pass; ++i)
      if (const auto* zeros = std::get_if<SparsePass>(&recipe_.passes[i])) {
        const auto names = RETORT_TRY(sparse_matrices(config, *zeros, recipe_.place(i)));
        network_.sparse.insert(names.begin(), names.end());
      }
    return {};
  }

  Result<void> need_stream() {
    if (stream_) return {};
    Result<TokenStream> made = TokenStream::make(recipe_.train->file, recipe_.train->limit_documents,
                                                 *tokenizer_, out_ / "tokens.bin", options_.threads);
    if (!made) {
      RETORT_TRY(on_disk(fail(made.error())));
      return fail(made.error());
    }
    stream_ = std::move(*made);
    return {};
  }

  /// Mean per token of the held-out text.
  Result<double> held_out_loss() {
    const Evaluation e = evaluate(network_, nullptr, *tokenizer_, held_out_, recipe_.held_out->max_tokens,
                                  [&] { return !out_.check_stop(); });
    RETORT_TRY(out_.check_stop());
    if (e.tokens == 0)
      return fail(ErrorCode::kInvalid, recipe_.held_out->file.string(), "holds no token to predict");
    return e.nll / static_cast<double>(e.tokens);
  }

  Result<TeacherOutputsKey> outputs_key(const Mixture& mixture, std::uint32_t window) {
    TeacherOutputsKey key;
    key.teacher_sha256 = teacher_model_sha256_;
    key.tokenizer_sha256 = RETORT_TRY(sha256_file_hex(tokenizer_folder_ / "tokenizer.json"));
    key.data_sha256 = data_sha256_;
    key.limit_documents = recipe_.train->limit_documents;
    key.windows = stream_->windows(window);
    key.window = window;
    key.vocabulary = teacher_->config.n_vocab;
    const bool text = mixture.teacher_text > 0;
    key.outputs = text ? TeacherOutputs::kWritten : mixture.outputs;
    key.k = text ? 1 : mixture.k;
    key.temperature = text ? mixture.text_temperature : mixture.temperature;
    if (key.outputs != TeacherOutputs::kTopK) key.seed = recipe_.seed;
    return key;
  }

  /// A cache that cannot be had costs time and no more. What a teacher writes takes many passes through it
  /// for each window: without --cache the run keeps it for itself.
  std::optional<TeacherCache> open_cache(const TeacherOutputsKey& key) {
    const fs::path folder =
        options_.cache.empty() && key.outputs == TeacherOutputs::kWritten ? out_ / "written" : options_.cache;
    if (folder.empty()) return std::nullopt;
    Result<TeacherCache> cache = TeacherCache::open(folder, key, options_.cache_limit);
    if (cache) return std::move(*cache);
    progress_.warning("the teacher's outputs are computed anew: " + cache.error().describe());
    return std::nullopt;
  }

  Result<void> run(std::size_t index, const OptimisePass& pass) {
    RETORT_TRY(need_stream());
    if (pass.distil) RETORT_TRY(need_teacher());
    if (teacher_)  // steps are in place
      for (auto& [name, tensor] : network_.weights) {
        const auto found = teacher_->weights.find(name);
        if (found != teacher_->weights.end() && tensor.is_same(found->second)) tensor = tensor.clone();
      }
    const std::uint32_t window = stream_->window_length(window_of(pass, network_.config));
    const std::uint32_t windows = windows_per_step(pass, window);
    const std::uint64_t per_step = std::uint64_t{windows} * window;
    // Counted among the training passes, so that recipes that differ in the cuts before read the same windows
    // in the same order, and share a cache of the teacher's outputs.
    const auto trainings = static_cast<std::uint64_t>(
        std::count_if(recipe_.passes.begin(), recipe_.passes.begin() + static_cast<std::ptrdiff_t>(index),
                      [](const Pass& p) { return std::holds_alternative<OptimisePass>(p); }));
    const std::uint64_t seed = recipe_.seed * 1000003 + trainings;
    std::optional<Teacher> teacher;
    std::optional<TeacherCache> cache;
    const bool kept =
        pass.distil && (pass.distil->outputs != TeacherOutputs::kFull || pass.distil->teacher_text > 0);
    if (pass.distil) {
      teacher.emplace(Teacher{*teacher_, {}});
      if (kept) {
        teacher->key = RETORT_TRY(outputs_key(*pass.distil, window));
        cache = open_cache(teacher->key);
        teacher->cache = cache ? &*cache : nullptr;
      }
      if (pass.distil->hidden > 0) add_projections(network_, teacher_->config, seed);
    }
    Training training = training_of(pass, index, per_step);
    training.loss = [&](std::uint64_t step) {
      return text_loss(network_, teacher ? &*teacher : nullptr, *stream_, pass, seed, step, window, windows,
                       &*tokenizer_);
    };
    OptimisePass plain = pass;
    plain.distil.reset();
    if (pass.distil)
      training.nll = [&](std::uint64_t step) {
        return text_loss(network_, nullptr, *stream_, plain, seed, step, window, windows, &*tokenizer_);
      };
    training.held_out_loss = [&] { return held_out_loss(); };
    RETORT_TRY(train_there(training, pass.distil ? &*teacher_ : nullptr));
    if (kept)
      progress_.emit("teacher_outputs",
                     {{"pass_index", index},
                      {"windows_computed", teacher->forwards},
                      {"windows_used", out_.state.step * windows},
                      {"cache", cache ? json::value(cache->path().string()) : json::value(nullptr)}});
    return pass_done(true);
  }

  Result<void> run(std::size_t index, const VocabularyPass&) {
    progress_.emit("vocabulary", {{"pass_index", index},
                                  {"tokens_before", teacher_model_->config.n_vocab},
                                  {"tokens", vocabulary_->kept.size()}});
    return pass_done(false);
  }

  Result<void> run(std::size_t index, const PrunePass& pass) {
    std::optional<ActivationStatistics> statistics;
    if (pass.activation) {
      torch::NoGradGuard no_grad;
      Trace trace;
      trace.statistics = &statistics.emplace();
      for (const at::Tensor& ids : RETORT_TRY(calibration(index, pass.calibration_tokens))) {
        RETORT_TRY(out_.check_stop());
        forward(network_, ids, &trace);
      }
    }
    network_ = prune(network_, plan_.passes[index].after, statistics ? &*statistics : nullptr);
    const auto* first = std::get_if<OptimisePass>(&recipe_.passes[0]);
    if (first != nullptr && first->init) network_.origins.clear();  // it was never the teacher
    return pass_done(true);
  }

  Result<void> run(std::size_t index, const SparsePass& pass) {
    std::vector<at::Tensor> text;
    if (pass.wanda) text = RETORT_TRY(calibration(index, pass.calibration_tokens));
    const auto names = RETORT_TRY(sparse_matrices(network_.config, pass, recipe_.place(index)));
    RETORT_TRY(sparsify(network_, pass, names, text, [&] { return out_.check_stop(); }));
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

  Result<void> run(std::size_t index, const ActivationPass& pass) {
    const std::vector<at::Tensor> text = RETORT_TRY(calibration(index, pass.calibration));
    const auto found = RETORT_TRY(calibrate_inputs(network_, pass, [&](Trace& trace) -> Result<void> {
      for (const at::Tensor& ids : text) {
        RETORT_TRY(out_.check_stop());
        forward(network_, ids, &trace);
      }
      return {};
    }));
    tell_calibrated(progress_, index, found);
    return pass_done(true);
  }

  /// Token ids [batch, window] of the training text, at least `tokens` of them as far as it goes.
  Result<std::vector<at::Tensor>> calibration(std::size_t index, std::uint64_t tokens) {
    RETORT_TRY(need_stream());
    if (stream_->tokens() < 16)
      return fail(ErrorCode::kInvalid, recipe_.train->file.string(),
                  "{} tokens are too few to calibrate by; give at least 16", stream_->tokens());
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
      if (start_.is_encoder()) out.back() = hide_tokens(out.back(), *tokenizer_, recipe_.seed + first).ids;
    }
    return out;
  }

  Result<void> run(std::size_t index, const QuantizePass& pass) {
    teacher_.reset();  // it is not asked, and rounding wants memory
    std::vector<at::Tensor> text;
    if (pass.needs_calibration())
      text = RETORT_TRY(calibration(index, std::max(pass.needs_statistics() ? pass.calibration_tokens : 0,
                                                    pass.bits ? pass.sensitivity_tokens : 0)));
    tell_quantized(progress_, index, pass,
                   RETORT_TRY(quantize(network_, pass, text, [&] { return out_.check_stop(); })));
    return pass_done(true);
  }

  Result<void> run(std::size_t, const EvaluatePass& pass) {
    RETORT_TRY(need_teacher());
    const Evaluation e = evaluate(network_, teacher_ ? &*teacher_ : nullptr, *tokenizer_, held_out_,
                                  recipe_.held_out->max_tokens, [&] { return !out_.check_stop(); });
    RETORT_TRY(out_.check_stop());
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
    tell_if_guessing(progress_, pass.label, e.nll / n, "a token", RETORT_TRY(guess()));
    return pass_done(false);
  }

  Result<void> run(std::size_t index, const ExportPass& pass) {
    const fs::path path = out_ / pass.file;
    const std::optional<TensorType> rewritten = plan_.passes[index].rewritten;
    fs::path bytes_of = path;
    if (pass.huggingface) {
      RETORT_TRY(on_disk(
          write_hf_model(path, network_.config, weight_sources(network_), pass.dtype, tokenizer_folder_)));
      bytes_of = path / "model.safetensors";
    } else {
      GgufMetadata extra = lineage(recipe_, path, {teacher_sha256_, {}, data_sha256_});
      for (auto& scale : input_scale_metadata(network_, [&](const std::string& name) {
             const auto encoded = network_.encoded.find(name);
             if (!rewritten && encoded != network_.encoded.end()) return encoded->second.type;
             return stored_type(rewritten.value_or(TensorType::kF16),
                                static_cast<std::uint64_t>(matrix_of(network_, name).size(1)));
           }))
        extra.push_back(std::move(scale));
      RETORT_TRY(on_disk(write_gguf_model(path, network_.config, *tokenizer_, weight_sources(network_),
                                          rewritten.value_or(TensorType::kF16), extra,
                                          rewritten ? EncodedWeights{} : network_.encoded)));
      if (pass.also_huggingface)
        RETORT_TRY(on_disk(write_hf_model(out_ / path.stem(), network_.config, weight_sources(network_),
                                          SafeTensor::DType::kF16, tokenizer_folder_)));
    }
    json::object artifact =
        RETORT_TRY(exported(pass, bytes_of, parameter_count(network_.config), plan_.passes[index].format));
    progress_.emit("exported", artifact);
    artifact["evaluation"] = nullptr;
    if (!serve_.empty() && !pass.huggingface) {
      RETORT_TRY(need_teacher());
      const json::object figures = RETORT_TRY(judge(path));
      tell_evaluation(progress_, pass.label, json::value(pass.file), figures);
      tell_if_guessing(progress_, pass.label,
                       RETORT_TRY(json_number(figures, "nll_per_token", path.string())), "a token",
                       RETORT_TRY(guess()));
      tell_samples(pass.label);
      artifact["evaluation"] = figures;
    }
    out_.state.artifacts.push_back(std::move(artifact));
    return pass_done(false);
  }

  /// What the held-out text costs one who knows how often each token comes in the text that was learnt from;
  /// where nothing was, that all come alike.
  Result<Guess> guess() {
    const std::size_t vocabulary = network_.config.n_vocab;
    const bool learns = std::any_of(recipe_.passes.begin(), recipe_.passes.end(), [](const Pass& pass) {
      return std::holds_alternative<OptimisePass>(pass);
    });
    if (!learns)
      return Guess{std::log(static_cast<double>(vocabulary)),
                   fmt::format("any of {} tokens alike", vocabulary)};
    if (guess_) return *guess_;
    RETORT_TRY(need_stream());
    std::vector<std::uint64_t> counts = stream_->counts(vocabulary);
    if (start_.is_encoder())  // what stands at every text's ends is never asked
      for (const TokenId special : {tokenizer_->bos(), tokenizer_->eos()})
        counts.at(static_cast<std::size_t>(special)) = 0;
    double all = static_cast<double>(vocabulary), sum = 0;
    for (const std::uint64_t count : counts) all += static_cast<double>(count);
    std::uint64_t told = 0;
    for (const std::string& document : held_out_) {
      const std::vector<TokenId> ids = document_tokens(*tokenizer_, document);
      const std::size_t end = start_.is_encoder() ? ids.size() - 1 : ids.size();
      for (std::size_t i = 1; i < end; ++i, ++told)
        sum -= std::log(static_cast<double>(counts.at(static_cast<std::size_t>(ids[i])) + 1) / all);
      if (recipe_.held_out->max_tokens != 0 && told >= recipe_.held_out->max_tokens) break;
    }
    guess_ = Guess{sum / static_cast<double>(std::max<std::uint64_t>(1, told)),
                   fmt::format("by how often each of {} tokens comes in the training text", vocabulary)};
    return *guess_;
  }

  /// What student and teacher write after the beginnings of held-out texts.
  void tell_samples(const std::string& label) {
    constexpr std::int64_t kPrompt = 16, kWritten = 48;
    if (held_out_.empty() || network_.config.n_ctx < kPrompt + 8 || network_.config.is_encoder()) return;
    const std::int64_t count = std::min<std::int64_t>(kWritten, network_.config.n_ctx - kPrompt);
    json::array texts;
    for (std::size_t i = 0; i < held_out_.size() && texts.size() < 3; ++i) {
      const std::vector<TokenId> ids = document_tokens(*tokenizer_, held_out_[i]);
      if (ids.size() < kPrompt) continue;
      const std::vector<std::int64_t> begun(ids.begin(), ids.begin() + kPrompt);
      const auto written = [&](const Network& network) {
        const at::Tensor own =
            write_on(network, at::tensor(begun, at::kLong).unsqueeze(0), count, {recipe_.seed + i});
        std::vector<TokenId> more(static_cast<std::size_t>(count));
        for (std::int64_t k = 0; k < count; ++k)
          more[static_cast<std::size_t>(k)] = own[0][k].item<TokenId>();
        return printable(tokenizer_->decode(more));
      };
      texts.push_back(json::object{
          {"prompt", printable(tokenizer_->decode({ids.data(), static_cast<std::size_t>(kPrompt)}))},
          {"student", written(network_)},
          {"teacher", teacher_ ? json::value(written(*teacher_)) : json::value(nullptr)}});
    }
    progress_.emit("samples", {{"label", label}, {"texts", std::move(texts)}});
  }

  /// retort-serve's own figures for a file, against the teacher's GGUF (written once, in F32).
  Result<json::object> judge(const fs::path& file) {
    fs::path reference;
    if (teacher_ && !teacher_config_.is_encoder()) {  // encoders are judged by the text alone
      reference = out_ / "teacher.gguf";
      if (!reference_)
        RETORT_TRY(
            on_disk(write_gguf_model(reference, teacher_->config, *tokenizer_, weight_sources(*teacher_),
                                     TensorType::kF32, {{"general.name", std::string("teacher")}})));
      reference_ = true;
    }
    std::vector<std::string> more;
    for (const auto& [option, value] : {std::pair{"--max-tokens", recipe_.held_out->max_tokens},
                                        {"--documents", recipe_.held_out->limit_documents}})
      if (value != 0) more.insert(more.end(), {option, std::to_string(value)});
    return judged(file, reference, more);
  }

  std::optional<HfModel> teacher_model_;
  std::string teacher_sha256_;  ///< of its weights, for the lineage
  ModelConfig start_, teacher_config_;
  std::optional<VocabularyCut> vocabulary_;
  std::vector<std::string> held_out_;
  std::optional<TokenStream> stream_;
  std::optional<Guess> guess_;
};

}  // namespace

std::unique_ptr<RecipeRun> make_language_run(const RunOptions& options, Recipe recipe, Progress& progress) {
  return std::make_unique<LanguageRun>(options, std::move(recipe), progress);
}

}  // namespace retort
