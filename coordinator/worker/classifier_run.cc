#include <algorithm>
#include <cmath>

#include "common/core/sha256.h"
#include "common/core/units.h"
#include "common/hf/classifier_model.h"
#include "coordinator/worker/classifier.h"
#include "coordinator/worker/data.h"
#include "coordinator/worker/distil.h"
#include "coordinator/worker/judge.h"
#include "coordinator/worker/prune.h"
#include "coordinator/worker/recipe_run.h"
#include "coordinator/worker/training.h"

namespace retort {
namespace {

namespace fs = std::filesystem;

/// Examples that go through a classifier at once where no gradient is kept.
constexpr std::uint64_t kBatch = 256;

/// Multiply-adds of one example as floating-point operations; values that autograd keeps of it.
struct Cost {
  double flops = 0;
  std::uint64_t values = 0;
};

Cost cost_of(const Network& shape) {
  Cost cost;
  if (!shape.classifier) {
    const ModelConfig& c = shape.config;
    for (const Operation& op : operations(c)) cost.flops += 2.0 * op.rows * op.columns * c.n_ctx;
    for (const LayerShape& layer : c.layers)
      cost.values += c.n_ctx * (10ull * c.n_embd + 5ull * layer.n_ff + 3ull * layer.n_head * c.n_ctx);
    return cost;
  }
  for (const RepeatedOperation& op : operations(*shape.classifier))
    cost.flops += 2.0 * op.rows * op.columns * op.times;
  const auto maps = feature_maps(*shape.classifier);
  for (std::size_t i = 0; i < shape.classifier->convolutions.size(); ++i)
    cost.values += 3 * convolved(shape.classifier->convolutions[i], maps[i]).values() + maps[i].values();
  for (const std::uint32_t width : shape.classifier->hidden) cost.values += 2 * width;
  cost.values += shape.classifier->input.values();
  return cost;
}

std::vector<std::string> matrices_of(const Network& shape) {
  if (!shape.classifier) return matrix_names(shape.config);
  std::vector<std::string> out;
  for (const ClassifierMatrix& m : classifier_matrices(*shape.classifier)) out.push_back(m.name);
  return out;
}

Result<Network> pruned_shape(const Network& shape, const PrunePass& pass, const std::string& where) {
  Network out;
  if (!shape.classifier) {
    if (!pass.channels.empty() || !pass.dense.empty())
      return fail(ErrorCode::kInvalid, where,
                  "prune.structured: of a bert, layers, ffn and heads can be cut");
    out.config = RETORT_TRY(pruned_config(shape.config, pass, where));
    return out;
  }
  out.classifier = shape.classifier;
  if (pass.layers || !pass.ffn.empty() || pass.heads)
    return fail(ErrorCode::kInvalid, where,
                "prune.structured: an {} has 'channels' of convolutions and 'hidden' dense layers to cut",
                to_string(shape.classifier->family));
  const auto narrow = [&](std::string_view what, const std::vector<std::uint32_t>& wanted, std::size_t count,
                          const std::function<std::uint32_t&(std::size_t)>& width) -> Result<void> {
    if (wanted.empty()) return {};
    if (wanted.size() != 1 && wanted.size() != count)
      return fail(ErrorCode::kInvalid, where,
                  "prune.structured: '{}' lists {} widths, and there are {} such layers", what, wanted.size(),
                  count);
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint32_t want = wanted.size() == 1 ? wanted[0] : wanted[i];
      std::uint32_t& have = width(i);
      if (want > have)
        return fail(ErrorCode::kInvalid, where,
                    "prune.structured: {} {} asked for, but layer {} has {}; it can only cut", want, what, i,
                    have);
      have -= (have - want) / pass.steps_left;
    }
    return {};
  };
  ClassifierConfig& c = *out.classifier;
  RETORT_TRY(narrow("channels", pass.channels, c.convolutions.size(),
                    [&](std::size_t i) -> std::uint32_t& { return c.convolutions[i].out_channels; }));
  RETORT_TRY(narrow("hidden", pass.dense, c.hidden.size(),
                    [&](std::size_t i) -> std::uint32_t& { return c.hidden[i]; }));
  return out;
}

/// The labels' cross-entropy.
at::Tensor label_loss(const at::Tensor& logits, const ExampleBatch& examples,
                      at::Reduction::Reduction reduction = at::Reduction::Mean) {
  return at::cross_entropy_loss(logits, examples.labels.to(logits.device()), {}, reduction);
}

/// A recipe whose task is classification.
class ClassifierRun final : public RecipeRun {
 public:
  ClassifierRun(const RunOptions& options, Recipe recipe, Progress& progress)
      : RecipeRun(options, std::move(recipe), progress) {}

  Result<Plan> prepare() override {
    if (!recipe_.teacher.empty()) RETORT_TRY(open_teacher());
    const auto* first = std::get_if<OptimisePass>(&recipe_.passes[0]);
    if (first != nullptr && first->classifier) RETORT_TRY(begin_new(*first->classifier));
    if (start_.classifier)
      RETORT_TRY(validate(*start_.classifier, recipe_.where));
    else
      RETORT_TRY(validate(start_.config, recipe_.where));
    plan_ = RETORT_TRY(make_plan());
    return plan_;
  }

 private:
  Result<void> begin() override {
    if (recipe_.held_out) {
      serve_ = RETORT_TRY(find_serve(options_.serve_binary));
      held_out_ = RETORT_TRY(read(*recipe_.held_out));
    }
    if (recipe_.train) {
      train_ = RETORT_TRY(read(*recipe_.train));
      tell_missing_labels();
      sources_.data_sha256 = data_sha256_;
    }
    const auto* first = std::get_if<OptimisePass>(&recipe_.passes[0]);
    using Normalize = ClassifierInit::Normalize;
    if (first != nullptr && first->classifier && start_.classifier &&
        first->classifier->normalize != Normalize::kNone) {
      train_->normalize(*start_.classifier, first->classifier->normalize == Normalize::kEach);
      for (Network& shape : shapes_)
        shape.classifier->mean = start_.classifier->mean, shape.classifier->std = start_.classifier->std;
    }
    return load_weights();
  }

  Result<void> run_pass(std::size_t index) override {
    return std::visit([&](const auto& pass) { return run(index, pass); }, recipe_.passes[index]);
  }

  Result<void> open_teacher() {
    const std::string type = RETORT_TRY(model_type_of(recipe_.teacher));
    Network teacher;
    if (is_classifier_type(type)) {
      const ClassifierModel model = RETORT_TRY(open_classifier_model(recipe_.teacher));
      teacher.classifier = model.config;
      RETORT_TRY(retort::load_weights(teacher, model.weights, ""));
    } else {
      const HfModel model = RETORT_TRY(open_hf_model(recipe_.teacher));
      if (model.config.encoder.labels.empty())
        return fail(ErrorCode::kUnsupported, recipe_.where,
                    "'{}' has no classification head; task: classification takes an mlp, a cnn or a "
                    "BertForSequenceClassification",
                    recipe_.teacher.string());
      tokenizer_ = model.tokenizer;
      tokenizer_folder_ = recipe_.teacher;
      teacher = RETORT_TRY(load_network(model, recipe_.teacher.string()));
    }
    sources_.teacher_sha256 = RETORT_TRY(weights_sha256(recipe_.teacher));
    teacher_model_sha256_ = RETORT_TRY(model_sha256(recipe_.teacher, sources_.teacher_sha256));
    start_.config = teacher.config, start_.classifier = teacher.classifier;
    teacher_ = std::move(teacher);
    return {};
  }

  Result<void> begin_new(const ClassifierInit& init) {
    std::vector<std::string> labels = init.labels;
    if (teacher_) {
      const auto& its = teacher_->classifier ? teacher_->classifier->labels : teacher_->config.encoder.labels;
      if (!labels.empty() && labels != its)
        return fail(ErrorCode::kInvalid, recipe_.place(0),
                    "the student's labels are not the teacher's, which begin with '{}'; leave them out",
                    its[0]);
      labels = its;
    } else if (labels.empty()) {
      labels = RETORT_TRY(labels_in(*recipe_.train));
    }
    start_ = {};
    if (!init.text && init.body.empty()) {
      ClassifierConfig config = init.tensors;
      config.labels = std::move(labels);
      if (config.input.channels == 0) config.input = {RETORT_TRY(values_in(*recipe_.train)), 1, 1};
      if (teacher_ &&
          (!teacher_->classifier || teacher_->classifier->input.values() != config.input.values()))
        return fail(ErrorCode::kInvalid, recipe_.place(0), "the student reads {} numbers, the teacher {}",
                    config.input.values(),
                    teacher_->classifier ? std::to_string(teacher_->classifier->input.values()) : "text");
      start_.classifier = std::move(config);
      return {};
    }
    if (teacher_ && !tokenizer_)
      return fail(ErrorCode::kInvalid, recipe_.place(0), "the student reads text, the teacher numbers");
    tokenizer_folder_ = init.text ? init.text->tokenizer : init.body;
    Tokenizer own = RETORT_TRY(Tokenizer::from_huggingface(tokenizer_folder_ / "tokenizer.json"));
    if (tokenizer_) RETORT_TRY(same_vocabulary(own, *tokenizer_, recipe_.place(0)));
    if (init.text) {
      start_.config = init_config(*init.text, own.vocabulary_size(), own.bos(), own.eos());
    } else {
      const HfModel body = RETORT_TRY(open_hf_model(init.body));
      if (!body.config.is_encoder())
        return fail(ErrorCode::kInvalid, recipe_.place(0), "init: '{}' is a {}, and a bert is asked for",
                    init.body.string(), to_string(body.config.family));
      start_.config = body.config;
      body_ = RETORT_TRY(load_network(body, init.body.string()));
      sources_.init_sha256 = RETORT_TRY(weights_sha256(init.body));
    }
    EncoderConfig& head = start_.config.encoder;
    head.labels = std::move(labels);
    head.mlm_head = false, head.pooler = true, head.pooling = TextPooling::kCls;
    start_.config.tied_embeddings = true;  // nothing reads the embedding but the look-up
    tokenizer_ = std::move(own);
    return {};
  }

  Result<Plan> make_plan() {
    constexpr std::uint64_t kBase = 220ull << 20;
    Plan plan;
    Network shape;
    shape.config = start_.config, shape.classifier = start_.classifier;
    TensorType format = TensorType::kF16;
    QuantizePass formats{.format = format};
    const auto bytes_of = [](const DataFile& file) {
      std::error_code error;
      const auto size = fs::file_size(file.file, error);
      return error ? 0 : size * (file.labels.empty() ? 1 : 4);  // a byte of an image becomes a float
    };
    const std::uint64_t data = (recipe_.train ? 2 * bytes_of(*recipe_.train) : 0) +
                               (recipe_.held_out ? 2 * bytes_of(*recipe_.held_out) : 0);
    for (std::size_t i = 0; i < recipe_.passes.size(); ++i) {
      const Pass& pass = recipe_.passes[i];
      const std::string& place = recipe_.place(i);
      PlannedPass planned;
      planned.name = pass_name(pass);
      planned.shape_before = describe(shape);
      std::uint64_t extra = 4 * parameters_of(shape);
      if (const auto* p = std::get_if<OptimisePass>(&pass)) {
        const Cost cost = cost_of(shape);
        planned.steps = std::max<std::uint64_t>(1, p->tokens / p->batch_tokens);
        planned.tokens = planned.steps * p->batch_tokens;
        planned.flops = 3 * cost.flops * static_cast<double>(planned.tokens);
        extra = 4 * extra + 4 * cost.values * p->batch_tokens;
        if (p->distil) {
          planned.flops += cost_of(*teacher_).flops * static_cast<double>(planned.tokens);
          extra += 4 * cost_of(*teacher_).values * p->batch_tokens;
        }
      } else if (const auto* cut = std::get_if<PrunePass>(&pass)) {
        shape = RETORT_TRY(pruned_shape(shape, *cut, place));
        if (cut->activation) {
          planned.tokens = cut->calibration_tokens;
          planned.flops = cost_of(shape).flops * static_cast<double>(planned.tokens);
        }
      } else if (const auto* scales = std::get_if<ActivationPass>(&pass)) {
        if (shape.classifier && scales->smooth)
          return fail(
              ErrorCode::kInvalid, place,
              "quantize.activations: nothing stands before an {}'s matrices that 'smooth' could scale",
              to_string(shape.classifier->family));
        if (!shape.classifier && scales->bytes)
          return fail(ErrorCode::kInvalid, place,
                      "quantize.activations: 'bytes' are inputs of an mlp or a cnn; a bert reads text");
        planned.tokens = scales->calibration;
        planned.flops = cost_of(shape).flops * static_cast<double>(planned.tokens);
      } else if (const auto* rounding = std::get_if<QuantizePass>(&pass)) {
        if (shape.classifier && rounding->awq)
          return fail(
              ErrorCode::kUnsupported, place,
              "quantize.weights: nothing stands before an {}'s matrices that 'awq' could scale; gptq and "
              "importance do without",
              to_string(shape.classifier->family));
        format = rounding->format;
        formats = *rounding;
        RETORT_TRY(check_rules(*rounding, matrices_of(shape), place));
        const double examples =
            static_cast<double>(rounding->needs_statistics() ? rounding->calibration_tokens : 0) * 5 +
            static_cast<double>(rounding->bits ? rounding->sensitivity_tokens : 0) * 20;
        planned.flops = cost_of(shape).flops * examples;
        if (shape.classifier) {  // one matrix's statistics, and the examples
          std::uint64_t widest = 0;
          for (const ClassifierMatrix& m : classifier_matrices(*shape.classifier))
            widest = std::max(widest, m.filled());
          if (rounding->needs_statistics()) extra += statistics_bytes(widest);
          if (rounding->needs_calibration())
            extra += 4 * cost_of(shape).values * kBatch +
                     4 * shape.classifier->input.values() *
                         std::max(rounding->calibration_tokens, rounding->sensitivity_tokens);
        } else {
          QuantizePass in_tokens = *rounding;
          in_tokens.calibration_tokens *= shape.config.n_ctx;
          in_tokens.sensitivity_tokens *= shape.config.n_ctx;
          extra += quantize_bytes(in_tokens, shape.config);
        }
      } else if (const auto* out = std::get_if<ExportPass>(&pass)) {
        const TensorType type = out->huggingface ? TensorType::kF16 : out->format.value_or(format);
        planned.rewritten = type;
        const bool mixed = !out->huggingface && !out->format && (formats.bits || !formats.formats.empty());
        planned.format = out->huggingface && out->dtype == SafeTensor::DType::kF32 ? "F32"
                         : mixed                                                   ? "mixed"
                                                                                   : info(type).name;
        const QuantizePass stored = mixed ? formats : QuantizePass{.format = type};
        planned.file_bytes = predicted_bytes(shape, stored);
        if (const std::string filled = rows_filled_up(shape, stored); !filled.empty())
          plan.warnings.push_back(out->file + ": " + filled);
        planned.name += " " + out->file;
      }
      planned.shape_after = describe(shape);
      planned.parameters = parameters_of(shape);
      planned.peak_bytes = kBase + data + (teacher_ ? 4 * parameters_of(*teacher_) : 0) + extra;
      plan.peak_bytes = std::max(plan.peak_bytes, planned.peak_bytes);
      plan.passes.push_back(std::move(planned));
      shapes_.push_back(shape);
    }
    return plan;
  }

  /// What whole blocks cost matrices whose rows are not; empty where that is little.
  static std::string rows_filled_up(const Network& shape, const QuantizePass& formats) {
    if (!shape.classifier || formats.bits) return {};
    std::size_t count = 0, all = 0;
    double values = 0, bits = 0, wanted = 0;
    for (const ClassifierMatrix& m : classifier_matrices(*shape.classifier)) {
      ++all;
      const TensorTypeInfo& type = info(stored_type(format_of(formats, m.name), m.filled()));
      if (type.block_values == 1 || m.filled() == m.columns()) continue;
      const double each = 8.0 * type.block_bytes / type.block_values;
      ++count;
      values += static_cast<double>(m.rows * m.columns());
      bits += each * static_cast<double>(m.rows * m.filled());
      wanted += each * static_cast<double>(m.rows * m.columns());
    }
    if (bits <= 1.1 * wanted) return {};
    return fmt::format(
        "the rows of {} of {} matrices are filled up to whole blocks of 32: {:.2f} bits a weight instead of "
        "{:.2f}",
        count, all, bits / values, wanted / values);
  }

  std::uint64_t predicted_bytes(const Network& shape, const QuantizePass& formats) const {
    if (!shape.classifier) {
      std::error_code error;
      const auto size = fs::file_size(tokenizer_folder_ / "tokenizer.json", error);
      return predicted_file_bytes(shape.config, formats, error ? 0 : size);
    }
    if (formats.bits)  // which formats these will be is not known yet
      return 2048 + static_cast<std::uint64_t>(*formats.bits / 8 * static_cast<double>(parameters_of(shape)));
    return 2048 + gguf_classifier_bytes(*shape.classifier,
                                        [&](const std::string& name) { return format_of(formats, name); });
  }

  Result<Examples> read(const DataFile& file) const {
    if (start_.classifier) return Examples::tensors(file, *start_.classifier);
    return Examples::texts(file, *tokenizer_, start_.config.n_ctx, labels());
  }

  const std::vector<std::string>& labels() const {
    return start_.classifier ? start_.classifier->labels : start_.config.encoder.labels;
  }

  /// Labels that nothing can be learnt of: in the file's first lines where it is sorted by label, say.
  void tell_missing_labels() {
    const std::vector<std::size_t> missing = train_->labels_without_example(labels().size());
    if (missing.empty()) return;
    std::string names;
    for (std::size_t i = 0; i < std::min<std::size_t>(missing.size(), 5); ++i)
      names += (i > 0 ? ", '" : "'") + labels()[missing[i]] + "'";
    progress_.warning(fmt::format("{}: {} of the model's {} labels have no example{}: {}{}",
                                  recipe_.train->file.string(), missing.size(), labels().size(),
                                  recipe_.train->limit_documents == 0
                                      ? ""
                                      : fmt::format(" among the first {}, which limit_examples takes; "
                                                    "mix the file's lines if it is sorted by label",
                                                    train_->size()),
                                  names, missing.size() > 5 ? ", …" : ""));
  }

  Result<void> load_weights() {
    const Network& shape = out_.state.pass == 0 ? start_ : shapes_[out_.state.pass - 1];
    network_ = {};
    network_.config = shape.config, network_.classifier = shape.classifier;
    if (!out_.state.checkpoint.empty()) return out_.restore(network_, moments_);
    const auto* first = std::get_if<OptimisePass>(&recipe_.passes[0]);
    if (first != nullptr && first->classifier) {
      randomize(network_, recipe_.seed);
      if (body_)  // with its pooler, where it has one; the head is new
        for (auto& [name, tensor] : body_->weights)
          if (name.starts_with("bert.") && network_.weights.contains(name)) network_.weights[name] = tensor;
      body_.reset();
    } else
      for (const auto& [name, tensor] : teacher_->weights) network_.weights[name] = tensor.clone();
    return {};
  }

  Result<void> run(std::size_t index, const OptimisePass& pass) {
    const std::uint64_t batch = std::min<std::uint64_t>(pass.batch_tokens, train_->size());
    const std::uint64_t seed = recipe_.seed * 1000003 + index;
    Training training = training_of(pass, index, batch);
    training.loss = [&](std::uint64_t step) {
      const ExampleBatch examples = train_->draw(seed, step * batch, batch);
      const at::Tensor logits = class_logits(network_, examples);
      at::Tensor loss = at::zeros({});
      if (!pass.distil || pass.distil->labels > 0)
        loss = label_loss(logits, examples) * (pass.distil ? pass.distil->labels : 1);
      if (pass.distil && pass.distil->soft > 0) {
        at::Tensor wanted;
        {
          torch::NoGradGuard no_grad;
          wanted = class_logits(*teacher_, examples);
        }
        loss = loss + soft_loss(logits, wanted, pass.distil->temperature) * pass.distil->soft;
      }
      if (loss.requires_grad()) loss.backward();
      return loss.item<double>();
    };
    if (pass.distil)
      training.nll = [&](std::uint64_t step) {
        const ExampleBatch examples = train_->draw(seed, step * batch, batch);
        return label_loss(class_logits(network_, examples), examples).item<double>();
      };
    training.held_out_loss = [&]() -> Result<double> {
      torch::NoGradGuard no_grad;
      double sum = 0;
      for (std::uint64_t first = 0; first < held_out_->size(); first += kBatch) {
        RETORT_TRY(out_.check_stop());
        const ExampleBatch examples = held_out_->in_order(first, kBatch);
        sum += label_loss(class_logits(network_, examples), examples, at::Reduction::Sum).item<double>();
      }
      return sum / static_cast<double>(held_out_->size());
    };
    RETORT_TRY(train_there(training, pass.distil ? &*teacher_ : nullptr));
    return pass_done(true);
  }

  Result<void> run(std::size_t index, const PrunePass& pass) {
    torch::NoGradGuard no_grad;
    OutputSums sums;
    ActivationStatistics statistics;
    if (pass.activation) {
      Trace trace;
      trace.statistics = &statistics;
      const std::uint64_t wanted = std::min<std::uint64_t>(pass.calibration_tokens, train_->size());
      for (std::uint64_t first = 0; first < wanted; first += kBatch) {
        RETORT_TRY(out_.check_stop());
        class_logits(network_,
                     train_->draw(recipe_.seed * 1000003 + index, first, std::min(kBatch, wanted - first)),
                     &sums, &trace);
      }
    }
    network_ = network_.classifier
                   ? prune_classifier(network_, *shapes_[index].classifier, pass.activation ? &sums : nullptr)
                   : prune(network_, shapes_[index].config, pass.activation ? &statistics : nullptr);
    return pass_done(true);
  }

  /// Scales of the inputs, and where asked for the bytes that inputs and logits come and go in (int8 over the
  /// range seen, with zero in it).
  Result<void> run(std::size_t index, const ActivationPass& pass) {
    RETORT_TRY(enough_to_calibrate());
    float low[2] = {0, 0}, high[2] = {0, 0};  // of inputs, of logits
    const std::uint64_t wanted = std::min<std::uint64_t>(pass.calibration, train_->size());
    const std::uint64_t batch = network_.classifier ? kBatch : 1;  // what fills up a text is no input
    const auto found = RETORT_TRY(calibrate_inputs(network_, pass, [&](Trace& trace) -> Result<void> {
      for (std::uint64_t first = 0; first < wanted; first += batch) {
        RETORT_TRY(out_.check_stop());
        const ExampleBatch examples =
            train_->draw(recipe_.seed * 1000003 + index, first, std::min(batch, wanted - first));
        const at::Tensor logits = class_logits(network_, examples, nullptr, &trace);
        for (const auto& [place, tensor] : {std::pair{0, &examples.inputs}, {1, &logits}}) {
          low[place] = std::min(low[place], tensor->min().item<float>());
          high[place] = std::max(high[place], tensor->max().item<float>());
        }
      }
      return {};
    }));
    if (pass.bytes)
      for (const auto& [place, bytes] :
           {std::pair{0, &network_.classifier->input_bytes}, {1, &network_.classifier->output_bytes}}) {
        const float scale = std::max((high[place] - low[place]) / 255, 1e-20f);
        const auto zero = static_cast<std::int32_t>(std::lround(-128 - low[place] / scale));
        *bytes = ByteTensor{true, scale, std::clamp(zero, -128, 127)};
      }
    tell_calibrated(progress_, index, found);
    return pass_done(true);
  }

  Result<void> run(std::size_t index, const QuantizePass& pass) {
    std::vector<at::Tensor> inputs;
    QuantizePass in_tokens = pass;
    in_tokens.sensitivity_tokens = 0;
    if (pass.needs_calibration()) {
      RETORT_TRY(enough_to_calibrate());
      const std::uint64_t wanted =
          std::min<std::uint64_t>(std::max(pass.needs_statistics() ? pass.calibration_tokens : 0,
                                           pass.bits ? pass.sensitivity_tokens : 0),
                                  train_->size());
      const std::uint64_t batch = network_.classifier ? kBatch : 1;  // what fills up a text is no input
      for (std::uint64_t i = 0; i < wanted; i += batch) {
        inputs.push_back(train_->draw(recipe_.seed * 1000003 + index, i, std::min(batch, wanted - i)).inputs);
        if (!network_.classifier && i < pass.sensitivity_tokens)
          in_tokens.sensitivity_tokens += static_cast<std::uint64_t>(inputs.back().numel());
      }
    }
    const auto stop = [&] { return out_.check_stop(); };
    tell_quantized(progress_, index, pass,
                   network_.classifier ? RETORT_TRY(quantize_classifier(network_, pass, inputs, stop))
                                       : RETORT_TRY(quantize(network_, in_tokens, inputs, stop)));
    return pass_done(true);
  }

  Result<void> enough_to_calibrate() const {
    if (train_->size() >= 16) return {};
    return fail(ErrorCode::kInvalid, recipe_.train->file.string(),
                "{} examples are too few to calibrate by; give at least 16", train_->size());
  }

  Result<void> run(std::size_t, const EvaluatePass& pass) {
    const fs::path file = out_ / "evaluate.gguf";
    RETORT_TRY(write(file, network_, TensorType::kF32, true));
    RETORT_TRY(tell_judged(pass.label, nullptr, RETORT_TRY(judge(file))));
    std::error_code ignored;
    fs::remove(file, ignored);
    return pass_done(false);
  }

  Result<void> run(std::size_t index, const ExportPass& pass) {
    const fs::path path = out_ / pass.file;
    fs::path bytes_of = path;
    if (pass.huggingface) {
      RETORT_TRY(write_folder(path, pass.dtype));
      bytes_of = path / "model.safetensors";
    } else {
      RETORT_TRY(write(path, network_, *shapes_format(index), pass.format.has_value()));
      if (pass.also_huggingface) RETORT_TRY(write_folder(out_.path() / path.stem(), SafeTensor::DType::kF16));
    }
    json::object artifact =
        RETORT_TRY(exported(pass, bytes_of, parameters_of(network_), plan_.passes[index].format));
    progress_.emit("exported", artifact);
    artifact["evaluation"] = nullptr;
    if (recipe_.held_out && !pass.huggingface) {
      json::object figures = RETORT_TRY(judge(path));
      RETORT_TRY(tell_judged(pass.label, json::value(pass.file), figures));
      for (const char* table : {"per_class", "confusion"}) figures.erase(table);  // they are in the event
      artifact["evaluation"] = std::move(figures);
    }
    out_.state.artifacts.push_back(std::move(artifact));
    return pass_done(false);
  }

  // What a classification recipe cannot hold (Recipe's reader).
  template <typename Other>
  Result<void> run(std::size_t, const Other&) {
    return fail(ErrorCode::kInternal, recipe_.where, "no pass of this task");
  }

  /// The matrices' type in an export: its own, else an earlier quantize.weights', else F16.
  std::optional<TensorType> shapes_format(std::size_t index) const {
    TensorType type = TensorType::kF16;
    for (std::size_t i = 0; i < index; ++i)
      if (const auto* rounding = std::get_if<QuantizePass>(&recipe_.passes[i])) type = rounding->format;
    return std::get<ExportPass>(recipe_.passes[index]).format.value_or(type);
  }

  /// `rewritten`: in `type`, whatever quantize.weights has made of the matrices.
  Result<void> write(const fs::path& path, const Network& network, TensorType type, bool rewritten) {
    GgufMetadata extra = lineage(recipe_, path, sources_);
    for (auto& scale : input_scale_metadata(network, [&](const std::string& name) {
           const auto encoded = network.encoded.find(name);
           if (!rewritten && encoded != network.encoded.end()) return encoded->second.type;
           if (network.classifier) return type;  // whose rows are filled up to whole blocks
           return stored_type(type, static_cast<std::uint64_t>(network.weight(name).size(1)));
         }))
      extra.push_back(std::move(scale));
    const EncodedWeights none;
    const EncodedWeights& encoded = rewritten ? none : network.encoded;
    return on_disk(network.classifier ? write_gguf_classifier(path, *network.classifier,
                                                              weight_sources(network), type, extra, encoded)
                                      : write_gguf_model(path, network.config, *tokenizer_,
                                                         weight_sources(network), type, extra, encoded));
  }
  Result<void> write_folder(const fs::path& path, SafeTensor::DType dtype) {
    return on_disk(
        network_.classifier
            ? write_classifier_folder(path, *network_.classifier, weight_sources(network_), dtype)
            : write_hf_model(path, network_.config, weight_sources(network_), dtype, tokenizer_folder_));
  }

  Result<void> tell_judged(const std::string& label, json::value file, const json::object& figures) {
    tell_evaluation(progress_, label, std::move(file), figures);
    const std::size_t count = labels().size();
    const double nll = RETORT_TRY(json_number(figures, "nll", label)),
                 any = std::log(static_cast<double>(count));
    if (!train_) {
      tell_if_guessing(progress_, label, nll, "an example",
                       {any, fmt::format("any of {} labels alike", count)});
      return {};
    }
    // One who is right more often than always saying the commonest may still be too sure of itself: that is
    // no guess, unless it is worse than knowing nothing.
    const auto [guessed, right] = held_out_->guessed_by_frequency(*train_, count);
    if (RETORT_TRY(json_number(figures, "accuracy", label)) <= right || nll > any + 1)
      tell_if_guessing(
          progress_, label, nll, "an example",
          {guessed, fmt::format("by how often each of {} labels comes in the training data", count)});
    return {};
  }

  Result<json::object> judge(const fs::path& file) {
    fs::path reference;
    if (teacher_ && teacher_->classifier) {  // encoders are judged by labels alone
      reference = out_ / "teacher.gguf";
      if (!reference_) RETORT_TRY(write(reference, *teacher_, TensorType::kF32, true));
      reference_ = true;
    }
    std::vector<std::string> more;
    if (!recipe_.held_out->labels.empty()) more = {"--labels", recipe_.held_out->labels.string()};
    return judged(file, reference, more);
  }

  Sources sources_;
  std::optional<Network> body_;  ///< of a student with a trained one, until it is loaded
  Network start_;                ///< its shape; no weights
  std::vector<Network> shapes_;  ///< after each pass; no weights
  std::optional<Examples> train_, held_out_;
};

}  // namespace

std::unique_ptr<RecipeRun> make_classifier_run(const RunOptions& options, Recipe recipe, Progress& progress) {
  return std::make_unique<ClassifierRun>(options, std::move(recipe), progress);
}

}  // namespace retort
