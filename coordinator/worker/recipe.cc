#include "coordinator/worker/recipe.h"

#include <fnmatch.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <set>

#include "common/core/file.h"
#include "common/core/json.h"
#include "common/core/sha256.h"
#include "common/core/utf8.h"

namespace retort {
namespace {

std::string at_line(const std::string& where, const YAML::Node& node) {
  const YAML::Mark mark = node.Mark();
  return mark.is_null() ? where : fmt::format("{}:{}", where, mark.line + 1);
}

/// A YAML mapping whose every key must be asked for. The first error sticks.
class Fields {
 public:
  Fields(const YAML::Node& node, std::string where, std::string name, std::vector<std::string> keys)
      : where_(std::move(where)), name_(std::move(name)), node_(node) {
    if (!node.IsMap()) {
      error_ = Error{ErrorCode::kInvalid, fmt::format("'{}' must be a mapping of keys to values", name_),
                     at(node)};
      return;
    }
    std::set<std::string> seen;
    for (const auto& member : node) {
      const std::string key = member.first.IsScalar() ? member.first.Scalar() : "";
      if (std::find(keys.begin(), keys.end(), key) == keys.end()) {
        const auto near = nearest(key, keys);
        refuse(member.first, fmt::format("unknown key '{}' in '{}'{}", key, name_,
                                         near ? fmt::format("; did you mean '{}'?", *near)
                                              : fmt::format("; it takes {}", fmt::join(keys, ", "))));
        return;
      }
      if (!seen.insert(key).second) {
        refuse(member.first, fmt::format("'{}' is given twice in '{}'", key, name_));
        return;
      }
    }
  }

  bool has(const char* key) const { return !error_ && node_[key].IsDefined() && !node_[key].IsNull(); }
  YAML::Node node(const char* key) const { return node_[key]; }
  std::string place() const { return at_line(where_, node_); }
  std::string at(const YAML::Node& node) const { return at_line(where_, node); }
  std::string at(const char* key) const { return at(node_[key]); }
  void refuse(const YAML::Node& node, std::string message) {
    if (!error_) error_ = Error{ErrorCode::kInvalid, std::move(message), at(node)};
  }
  bool need(const char* key) {
    if (error_) return false;
    if (has(key)) return true;
    refuse(node_, fmt::format("'{}' needs '{}'", name_, key));
    return false;
  }

  /// Digits alone, as people count: 010 is ten.
  static std::optional<std::uint64_t> count(const std::string& text) {
    std::uint64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (text.empty() || error != std::errc() || end != text.data() + text.size()) return std::nullopt;
    return value;
  }
  template <typename T>
  void whole(const char* key, T& out, std::uint64_t low, std::uint64_t high) {
    if (!has(key)) return;
    const std::string text = node_[key].IsScalar() ? node_[key].Scalar() : "";
    const auto value = count(text);
    if (!value || *value < low || *value > high) {
      refuse(node_[key], low == high ? fmt::format("'{}' must be {}, not '{}'", key, low, text)
                                     : fmt::format("'{}' must be a whole number from {} to {}, not '{}'", key,
                                                   low, high, text));
      return;
    }
    out = static_cast<T>(*value);
  }
  /// A whole number, or a list of them.
  void wholes(const char* key, std::vector<std::uint32_t>& out, std::uint32_t low, std::uint32_t high) {
    if (!has(key)) return;
    const YAML::Node list = node_[key];
    for (std::size_t i = 0; i < (list.IsSequence() ? list.size() : 1); ++i) {
      const YAML::Node item = list.IsSequence() ? list[i] : list;
      const std::string text = item.IsScalar() ? item.Scalar() : "";
      const auto value = count(text);
      if (!value || *value < low || *value > high)
        return refuse(item, fmt::format("'{}' must be a whole number from {} to {}, or a list of such, not "
                                        "'{}'",
                                        key, low, high, text));
      out.push_back(static_cast<std::uint32_t>(*value));
    }
    if (out.empty()) refuse(list, fmt::format("'{}' is an empty list", key));
  }
  void number(const char* key, double& out, double low, double high) {
    if (!has(key)) return;
    double value = NAN;
    if (!node_[key].IsScalar() || !YAML::convert<double>::decode(node_[key], value) ||
        !(value >= low && value <= high)) {
      refuse(node_[key], fmt::format("'{}' must be a number from {} to {}, not '{}'", key, low, high,
                                     node_[key].IsScalar() ? node_[key].Scalar() : "…"));
      return;
    }
    out = value;
  }
  void text(const char* key, std::string& out) {
    if (!has(key)) return;
    if (!node_[key].IsScalar() || node_[key].Scalar().empty()) {
      refuse(node_[key], fmt::format("'{}' must be a text", key));
      return;
    }
    const std::string& given = node_[key].Scalar();
    if (std::any_of(given.begin(), given.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; })) {
      refuse(node_[key], fmt::format("'{}' has control characters", key));
      return;
    }
    out = given;
  }
  void choice(const char* key, std::string& out, const std::vector<std::string>& choices) {
    text(key, out);
    if (error_ || !has(key) || std::find(choices.begin(), choices.end(), out) != choices.end()) return;
    const auto near = nearest(out, choices);
    refuse(node_[key], fmt::format("'{}' is '{}', but can only be {}{}", key, out, fmt::join(choices, ", "),
                                   near ? fmt::format("; did you mean '{}'?", *near) : ""));
  }
  void flag(const char* key, bool& out) {
    std::string given = out ? "true" : "false";
    choice(key, given, {"true", "false"});
    out = given == "true";
  }
  void path(const char* key, std::filesystem::path& out, const std::filesystem::path& folder,
            bool directory) {
    std::string given;
    text(key, given);
    if (error_ || given.empty()) return;
    out = folder / given;
    std::error_code ignored;
    const bool there = directory ? std::filesystem::is_directory(out, ignored)
                                 : std::filesystem::is_regular_file(out, ignored);
    if (!there)
      error_ = Error{ErrorCode::kNotFound,
                     fmt::format("'{}': there is no {} {}", key, directory ? "folder" : "file", out.string()),
                     at(key)};
  }
  Result<void> result() const {
    if (error_) return fail(*error_);
    return {};
  }

 private:
  std::string where_, name_;
  YAML::Node node_;
  std::optional<Error> error_;
};

/// What a run's output folder holds beside its exports.
constexpr std::array<std::string_view, 14> kOwnFiles{
    "teacher.gguf", "result.json", "state.json", "progress.jsonl", "worker.lock", "cancel",  "finish",
    "eval.json",    "tokenizer",   "tokens.bin", "report.html",    "report.json", "written", "eval.stderr"};

struct Reader {
  std::filesystem::path folder;
  std::string where;
  bool classification = false;

  Result<DataFile> data(const YAML::Node& node, const std::string& name, bool held_out) {
    std::vector<std::string> keys{"file"};
    if (classification)
      keys.push_back("labels");
    else
      keys.push_back("limit_documents");
    if (classification && !held_out) keys.push_back("limit_examples");
    if (!classification && held_out) keys.push_back("max_tokens");
    Fields fields(node, where, name, keys);
    DataFile out;
    if (fields.need("file")) fields.path("file", out.file, folder, false);
    if (classification) fields.path("labels", out.labels, folder, false);
    fields.whole(classification ? "limit_examples" : "limit_documents", out.limit_documents, 1, 1ull << 40);
    fields.whole("max_tokens", out.max_tokens, 1, 1ull << 40);
    RETORT_TRY(fields.result());
    return out;
  }

  /// train, distil.soft, distil, distil.sequence, quantize.aware.
  Result<Pass> optimise(const YAML::Node& node, const std::string& name) {
    OptimisePass out;
    out.name = name;
    const bool train = name == "train", mixture = name == "distil", aware = name == "quantize.aware",
               sequence = name == "distil.sequence";
    if (!train) out.distil.emplace();
    std::vector<std::string> keys{"tokens",       "batch_tokens",       "context",        "learning_rate",
                                  "warmup",       "schedule",           "decay",          "clip",
                                  "weight_decay", "checkpoint_seconds", "evaluate_every", "patience",
                                  "precision"};
    const char *amount = "tokens", *batch = "batch_tokens";
    if (classification) {
      amount = "examples", batch = "batch_examples";
      keys = {amount, batch,          "learning_rate",      "warmup",         "schedule", "decay",
              "clip", "weight_decay", "checkpoint_seconds", "evaluate_every", "patience"};
      out.batch_tokens = 64;
    }
    keys.push_back("init");
    const bool outputs = !train && !sequence;
    if (outputs) keys.push_back("temperature");
    if (outputs && !classification) keys.insert(keys.end(), {"teacher_outputs", "k"});
    if (outputs && !mixture) keys.push_back("alpha");
    if (mixture || sequence) keys.push_back("text_temperature");
    if (!train && !classification) keys.erase(std::find(keys.begin(), keys.end(), "init"));
    if (mixture)
      keys.insert(keys.end(), {"labels", "soft", "divergence", "beta", "attention", "hidden", "relation",
                               "relation_heads", "layer_map", "on_policy", "teacher_text"});
    if (aware) keys.insert(keys.end(), {"format", "formats"});
    Fields fields(node, where, name, keys);
    if (fields.need(amount)) fields.whole(amount, out.tokens, 1, 1ull << 50);
    fields.whole(batch, out.batch_tokens, 1, 1u << 24);
    fields.whole("context", out.context, 2, 1u << 20);
    if (!fields.has("init") && !classification)
      out.learning_rate = 2e-4;           // 1e-3 undoes what a cut model still knows
    if (aware) out.learning_rate = 5e-5;  // and rounding has undone much less
    fields.number("learning_rate", out.learning_rate, 1e-9, 1);
    fields.number("warmup", out.warmup, 0, 1);
    fields.number("decay", out.decay, 0, 1);
    fields.number("clip", out.clip, 1e-6, 1e6);
    fields.number("weight_decay", out.weight_decay, 0, 10);
    fields.whole("checkpoint_seconds", out.checkpoint_seconds, 1, 86400);
    fields.whole("evaluate_every", out.evaluate_every, 1, 1ull << 40);
    fields.whole("patience", out.patience, 1, 1000000);
    if (fields.has("patience") && !fields.has("evaluate_every"))
      fields.refuse(fields.node("patience"),
                    "'patience' counts looks at the held-out loss: it needs 'evaluate_every'");
    std::string precision = "f32";
    fields.choice("precision", precision, {"f32", "bf16", "auto"});
    out.precision = precision == "bf16"   ? OptimisePass::Precision::kBf16
                    : precision == "auto" ? OptimisePass::Precision::kAuto
                                          : OptimisePass::Precision::kF32;
    std::string schedule = "cosine";
    fields.choice("schedule", schedule, {"cosine", "wsd", "constant"});
    out.schedule = schedule == "wsd"        ? OptimisePass::Schedule::kWsd
                   : schedule == "constant" ? OptimisePass::Schedule::kConstant
                                            : OptimisePass::Schedule::kCosine;
    if (sequence) {
      out.distil->labels = out.distil->teacher_text = 1, out.distil->soft = 0;
      fields.number("text_temperature", out.distil->text_temperature, 0, 10);
    } else if (out.distil) {
      RETORT_TRY(read_mixture(fields, *out.distil, mixture));
      if (out.distil->soft == 0) out.distil->outputs = TeacherOutputs::kFull;  // nobody asks: none are kept
    }
    RETORT_TRY(fields.result());
    if (aware) {
      QuantizePass& rounding = out.aware.emplace();
      rounding.format = RETORT_TRY(format(fields, "format"));
      RETORT_TRY(read_rules(fields, rounding));
    }
    RETORT_TRY(fields.result());
    if (fields.has("init") && classification)
      out.classifier = RETORT_TRY(classifier_init(fields.node("init")));
    else if (fields.has("init"))
      out.init = RETORT_TRY(transformer_init(fields.node("init"), {"family"}));
    return out;
  }

  /// `more`: keys beside the shape's.
  Result<InitShape> transformer_init(const YAML::Node& node, const std::vector<std::string>& more) {
    {
      std::vector<std::string> keys{"hidden", "layers", "heads", "kv_heads", "ffn", "context", "tokenizer"};
      keys.insert(keys.end(), more.begin(), more.end());
      Fields shape(node, where, "init", keys);
      InitShape init;
      std::string family = classification ? "bert" : "llama";
      shape.choice("family", family, {"llama", "bert"});
      if (family == "bert") init.family = ModelFamily::kBert;
      for (const char* key : {"hidden", "layers", "heads", "ffn", "context", "tokenizer"}) shape.need(key);
      shape.whole("hidden", init.hidden, 1, 1u << 16);
      shape.whole("layers", init.layers, 1, 1u << 10);
      shape.whole("heads", init.heads, 1, 1u << 12);
      init.kv_heads = init.heads;
      shape.whole("kv_heads", init.kv_heads, 1, 1u << 12);
      shape.whole("ffn", init.ffn, 1, 1u << 20);
      shape.whole("context", init.context, 2, 1u << 20);
      shape.path("tokenizer", init.tokenizer, folder, true);
      RETORT_TRY(shape.result());
      if (family == "bert" && init.kv_heads != init.heads)
        return fail(ErrorCode::kInvalid, shape.at("kv_heads"),
                    "a bert has one key/value head for each head; leave kv_heads out");
      if (init.heads % init.kv_heads != 0 || init.hidden % init.heads != 0 ||
          init.hidden / init.heads % 2 != 0)
        return fail(ErrorCode::kInvalid, at_line(where, node),
                    "kv_heads must divide heads, and hidden / heads must be an even whole number");
      return init;
    }
  }

  Result<ClassifierInit> classifier_init(const YAML::Node& node) {
    ClassifierInit out;
    const std::vector<std::string> families{"mlp", "cnn", "bert"};
    std::string family;
    if (node.IsMap() && node["family"].IsDefined() && node["family"].IsScalar())
      family = node["family"].Scalar();
    if (std::find(families.begin(), families.end(), family) == families.end())
      return fail(ErrorCode::kInvalid, at_line(where, node), "init needs a 'family': {}",
                  fmt::join(families, ", "));
    if (family == "bert" && node["model"].IsDefined()) {
      Fields fields(node, where, "init", {"family", "model", "labels"});
      fields.path("model", out.body, folder, true);
      RETORT_TRY(texts(fields, "labels", out.labels));
      if (out.body.empty()) return fail(ErrorCode::kInvalid, fields.at("model"), "'model' must be a folder");
      return out;
    }
    if (family == "bert") {
      out.text = RETORT_TRY(transformer_init(node, {"family", "labels"}));
      Fields fields(
          node, where, "init",
          {"family", "hidden", "layers", "heads", "kv_heads", "ffn", "context", "tokenizer", "labels"});
      RETORT_TRY(texts(fields, "labels", out.labels));
      return out;
    }
    const bool mlp = family == "mlp";
    std::vector<std::string> keys{"family", "input", "hidden", "activation", "labels", "normalize"};
    keys.push_back(mlp ? "features" : "convolutions");
    Fields fields(node, where, "init", keys);
    ClassifierConfig& c = out.tensors;
    c.family = mlp ? ClassifierFamily::kMlp : ClassifierFamily::kCnn;
    std::vector<std::uint32_t> input;
    fields.wholes("input", input, 1, 1u << 20);
    fields.wholes("hidden", c.hidden, 1, 1u << 16);
    std::string normalize = "each";
    fields.choice("normalize", normalize, {"each", "all", "none"});
    using Normalize = ClassifierInit::Normalize;
    out.normalize = normalize == "all"    ? Normalize::kAll
                    : normalize == "none" ? Normalize::kNone
                                          : Normalize::kEach;
    RETORT_TRY(fields.result());
    RETORT_TRY(texts(fields, "labels", out.labels));
    RETORT_TRY(texts(fields, "features", c.feature_names));
    if (mlp && input.empty()) {
      c.input = {static_cast<std::uint32_t>(c.feature_names.size()), 1, 1};  // 0: as the data says
    } else if (mlp && input.size() == 1) {
      c.input = {input[0], 1, 1};
    } else if (!mlp && input.size() == 3) {
      c.input = {input[0], input[1], input[2]};
    } else {
      return fail(ErrorCode::kInvalid, fields.has("input") ? fields.at("input") : fields.place(),
                  "'input' must be {}",
                  mlp ? "the number of features" : "a list of three: channels, height and width");
    }
    c.activation = RETORT_TRY(activation(fields));
    if (mlp) return out;
    if (!fields.need("convolutions")) RETORT_TRY(fields.result());
    const YAML::Node list = fields.node("convolutions");
    if (!list.IsSequence() || list.size() == 0)
      return fail(ErrorCode::kInvalid, fields.at("convolutions"),
                  "'convolutions' must be a list of {{channels: …, kernel: …}}");
    for (const YAML::Node& item : list) {
      Fields each(
          item, where, "convolutions",
          {"channels", "kernel", "stride", "padding", "activation", "pooling", "pool_size", "pool_stride"});
      Convolution conv;
      if (each.need("channels")) each.whole("channels", conv.out_channels, 1, 1u << 14);
      each.whole("kernel", conv.kernel, 1, 64);
      each.whole("stride", conv.stride, 1, 64);
      each.whole("padding", conv.padding, 0, 63);
      std::string pooling = "none";
      each.choice("pooling", pooling, {"none", "max", "average"});
      each.whole("pool_size", conv.pool_size, 1, 64);
      conv.pool_stride = conv.pool_size;
      each.whole("pool_stride", conv.pool_stride, 1, 64);
      RETORT_TRY(each.result());
      conv.pooling = *pooling_from(pooling);
      conv.activation = RETORT_TRY(activation(each));
      c.convolutions.push_back(conv);
    }
    return out;
  }

  Result<Activation> activation(Fields& fields) {
    std::string name = "relu";
    fields.choice("activation", name, {"relu", "gelu_new", "tanh", "none"});
    RETORT_TRY(fields.result());
    return *activation_from(name);
  }

  /// A list of texts.
  Result<void> texts(Fields& fields, const char* key, std::vector<std::string>& out) {
    if (!fields.has(key)) return fields.result();
    const YAML::Node list = fields.node(key);
    if (!list.IsSequence() || list.size() == 0)
      return fail(ErrorCode::kInvalid, fields.at(key), "'{}' must be a list of texts", key);
    for (const YAML::Node& item : list) {
      if (!item.IsScalar() || item.Scalar().empty())
        return fail(ErrorCode::kInvalid, fields.at(item), "'{}' must be a list of texts", key);
      out.push_back(item.Scalar());
    }
    return fields.result();
  }

  /// `steps` and what is distilled after each of them; both or none.
  struct Steps {
    std::uint32_t count = 1;
    std::optional<Pass> distil;
  };
  Result<Steps> steps(Fields& fields) {
    Steps out;
    fields.whole("steps", out.count, 2, 100);
    RETORT_TRY(fields.result());
    if (fields.has("steps") != fields.has("distil"))
      return fail(ErrorCode::kInvalid, fields.at(fields.has("steps") ? "steps" : "distil"),
                  "'steps' and 'distil', what is learnt after each of them, come together");
    if (fields.has("distil")) out.distil = RETORT_TRY(optimise(fields.node("distil"), "distil.soft"));
    return out;
  }

  Result<std::vector<Pass>> sparse(const YAML::Node& node) {
    SparsePass pass;
    Fields fields(node, where, "prune.unstructured",
                  {"sparsity", "pattern", "method", "match", "calibration_tokens", "steps", "distil"});
    fields.number("sparsity", pass.sparsity, 0.01, 0.99);
    std::string method = "wanda", pattern;
    fields.choice("method", method, {"wanda", "magnitude"});
    pass.wanda = method == "wanda";
    fields.text("match", pass.match);
    fields.text("pattern", pattern);
    fields.whole("calibration_tokens", pass.calibration_tokens, 16, 1ull << 40);
    RETORT_TRY(fields.result());
    if (fields.has("pattern") == fields.has("sparsity"))
      return fail(ErrorCode::kInvalid, at_line(where, node),
                  "prune.unstructured needs one of 'sparsity', a share of zeros, and 'pattern', as 2:4");
    if (!pattern.empty()) {
      const std::size_t colon = pattern.find(':');
      const auto digits = [](const std::string& s) {
        return !s.empty() && s.size() <= 3 && s.find_first_not_of("0123456789") == std::string::npos;
      };
      if (colon != std::string::npos && digits(pattern.substr(0, colon)) &&
          digits(pattern.substr(colon + 1))) {
        pass.n = static_cast<std::uint32_t>(std::stoul(pattern.substr(0, colon)));
        pass.m = static_cast<std::uint32_t>(std::stoul(pattern.substr(colon + 1)));
      }
      if (pass.n == 0 || pass.n >= pass.m || pass.m > 256)
        return fail(ErrorCode::kInvalid, fields.at("pattern"),
                    "'pattern' is '{}', but must be N:M, N of each M neighbours stay, as 2:4 (M up to 256; "
                    "YAML needs it in quotes)",
                    pattern);
      if (fields.has("steps"))
        return fail(ErrorCode::kInvalid, fields.at("steps"),
                    "a pattern is cut at once: 'steps' needs 'sparsity'");
    }
    const Steps in = RETORT_TRY(steps(fields));
    std::vector<Pass> out;
    const double whole = pass.sparsity;
    for (std::uint32_t i = 1; i <= in.count; ++i) {
      // Much while there is much to spare, little at the end (Zhu & Gupta, 1710.01878, equation 1).
      pass.sparsity = whole * (1 - std::pow(1 - static_cast<double>(i) / in.count, 3));
      out.push_back(pass);
      if (in.distil) out.push_back(*in.distil);
    }
    return out;
  }

  Result<std::vector<Pass>> prune(const YAML::Node& node) {
    PrunePass out;
    if (classification) {
      Fields fields(node, where, "prune.structured",
                    {"channels", "hidden", "layers", "ffn", "heads", "importance", "calibration_examples",
                     "steps", "distil"});
      fields.wholes("channels", out.channels, 1, 1u << 14);
      fields.wholes("hidden", out.dense, 1, 1u << 16);
      return cut(fields, node, out, "calibration_examples");
    }
    Fields fields(node, where, "prune.structured",
                  {"layers", "hidden", "ffn", "heads", "kv_heads", "importance", "calibration_tokens",
                   "steps", "distil"});
    optional(fields, "hidden", out.hidden, 1u << 16);
    return cut(fields, node, out, "calibration_tokens");
  }

  static void optional(Fields& fields, const char* key, std::optional<std::uint32_t>& value,
                       std::uint32_t high) {
    if (!fields.has(key)) return;
    std::uint32_t number = 0;
    fields.whole(key, number, 1, high);
    value = number;
  }

  /// What both tasks' cuts have.
  Result<std::vector<Pass>> cut(Fields& fields, const YAML::Node& node, PrunePass out,
                                const char* calibration) {
    optional(fields, "layers", out.layers, 1u << 10);
    fields.wholes("ffn", out.ffn, 1, 1u << 20);
    optional(fields, "heads", out.heads, 1u << 12);
    optional(fields, "kv_heads", out.kv_heads, 1u << 12);
    std::string importance = "activation";
    fields.choice("importance", importance, {"activation", "magnitude"});
    out.activation = importance == "activation";
    fields.whole(calibration, out.calibration_tokens, 16, 1ull << 40);
    RETORT_TRY(fields.result());
    if (out.channels.empty() && out.dense.empty() && !out.layers && !out.hidden && out.ffn.empty() &&
        !out.heads && !out.kv_heads)
      return fail(ErrorCode::kInvalid, at_line(where, node), "prune.structured needs a target: {}",
                  classification ? "channels or hidden; of a bert layers, ffn or heads"
                                 : "layers, hidden, ffn, heads or kv_heads");
    const Steps in = RETORT_TRY(steps(fields));
    if (in.count > 1 && out.layers && out.ffn.size() > 1)
      return fail(ErrorCode::kInvalid, fields.at("steps"),
                  "a width for each layer and fewer layers cannot be reached in steps; cut layers in a pass "
                  "before");
    std::vector<Pass> passes;
    for (out.steps_left = in.count; out.steps_left > 0; --out.steps_left) {
      passes.push_back(out);
      if (in.distil) passes.push_back(*in.distil);
    }
    return passes;
  }

  Result<TensorType> format_named(const std::string& name, const std::string& key, const std::string& place) {
    const auto type = tensor_type_from(name);
    if (!type)
      return fail(ErrorCode::kInvalid, place,
                  "'{}' is '{}', but can only be F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q4_K, Q3_K, Q4_0, IQ4_NL, "
                  "SPARSE_Q8, SPARSE24_Q8, CODEBOOK4 or CODEBOOK8",
                  key, name);
    return *type;
  }
  Result<TensorType> format(Fields& fields, const char* key) {
    std::string name = "Q8_0";
    fields.text(key, name);
    RETORT_TRY(fields.result());
    return format_named(name, key, fields.has(key) ? fields.at(key) : fields.place());
  }

  Result<void> read_mixture(Fields& fields, Mixture& out, bool mixture) {
    fields.number("temperature", out.temperature, 0.05, 100);
    std::string outputs = "full", divergence = "forward";
    fields.choice("teacher_outputs", outputs, {"full", "top_k", "sampled"});
    out.outputs = outputs == "top_k"     ? TeacherOutputs::kTopK
                  : outputs == "sampled" ? TeacherOutputs::kSampled
                                         : TeacherOutputs::kFull;
    fields.whole("k", out.k, 1, 65535);
    if (out.outputs == TeacherOutputs::kFull && fields.has("k"))
      fields.refuse(fields.node("k"), "'k' belongs to teacher_outputs: top_k or sampled");
    if (!mixture) {
      out.soft = 0.9;
      fields.number("alpha", out.soft, 0, 1);
      out.labels = 1 - out.soft;
      return fields.result();
    }
    fields.number("labels", out.labels, 0, 1e6);
    fields.number("soft", out.soft, 0, 1e6);
    fields.choice("divergence", divergence, {"forward", "reverse", "jsd"});
    out.divergence = divergence == "reverse" ? Divergence::kReverse
                     : divergence == "jsd"   ? Divergence::kJensenShannon
                                             : Divergence::kForward;
    fields.number("beta", out.beta, 0.001, 0.999);
    if (out.divergence != Divergence::kJensenShannon && fields.has("beta"))
      fields.refuse(fields.node("beta"), "'beta' belongs to divergence: jsd");
    fields.number("attention", out.attention, 0, 1e6);
    fields.number("hidden", out.hidden, 0, 1e6);
    fields.number("relation", out.relation, 0, 1e6);
    fields.whole("relation_heads", out.relation_heads, 1, 4096);
    fields.wholes("layer_map", out.layer_map, 0, 1u << 10);
    if (!out.layer_map.empty() && !out.needs_trace())
      fields.refuse(fields.node("layer_map"), "'layer_map' belongs to attention, hidden and relation");
    fields.number("on_policy", out.on_policy, 0, 1);
    fields.number("teacher_text", out.teacher_text, 0, 1);
    fields.number("text_temperature", out.text_temperature, 0, 10);
    if (fields.has("text_temperature") && out.teacher_text == 0)
      fields.refuse(fields.node("text_temperature"), "'text_temperature' belongs to teacher_text");
    if (out.on_policy > 0 && out.soft + out.attention + out.hidden + out.relation == 0)
      fields.refuse(
          fields.node("on_policy"),
          "what the student writes has no labels: 'on_policy' needs soft, attention, hidden or relation");
    if (out.on_policy + out.teacher_text > 1)
      fields.refuse(fields.node("teacher_text"),
                    "on_policy and teacher_text are shares of the same windows: together at most 1");
    if (out.outputs != TeacherOutputs::kFull &&
        (out.needs_trace() || out.on_policy > 0 || out.teacher_text > 0 ||
         out.divergence != Divergence::kForward))
      fields.refuse(fields.node("teacher_outputs"),
                    "attention, hidden, relation, on_policy, teacher_text and divergences other than forward "
                    "need 'teacher_outputs: full'");
    if (out.labels + out.soft + out.attention + out.hidden + out.relation <= 0)
      return fail(ErrorCode::kInvalid, fields.place(), "'distil' has no part with a weight above zero");
    return fields.result();
  }

  Result<void> read_rules(Fields& fields, QuantizePass& out) {
    if (!fields.has("formats")) return {};
    const YAML::Node list = fields.node("formats");
    if (!list.IsSequence())
      return fail(ErrorCode::kInvalid, fields.at("formats"),
                  "'formats' must be a list of {{match: PATTERN, format: FORMAT}}");
    for (const YAML::Node& item : list) {
      Fields rule(item, where, "formats", {"match", "format"});
      QuantizePass::Rule made{};
      if (rule.need("match")) rule.text("match", made.match);
      rule.need("format");
      RETORT_TRY(rule.result());
      made.format = RETORT_TRY(format(rule, "format"));
      out.formats.push_back(std::move(made));
    }
    return {};
  }

  Result<Pass> quantize(const YAML::Node& node) {
    QuantizePass out;
    const char* const calibration = classification ? "calibration_examples" : "calibration_tokens";
    const char* const sensitivity = classification ? "sensitivity_examples" : "sensitivity_tokens";
    if (classification) out.calibration_tokens = 1024, out.sensitivity_tokens = 256;
    Fields fields(node, where, "quantize.weights",
                  {"format", "formats", "method", "awq", "act_order", "damping", calibration, "bits",
                   "candidates", sensitivity});
    RETORT_TRY(fields.result());
    out.format = RETORT_TRY(format(fields, "format"));
    std::string method = "nearest";
    fields.choice("method", method, {"nearest", "importance", "gptq"});
    out.method = method == "gptq"         ? QuantizePass::Method::kGptq
                 : method == "importance" ? QuantizePass::Method::kImportance
                                          : QuantizePass::Method::kNearest;
    fields.flag("awq", out.awq);
    fields.flag("act_order", out.act_order);
    fields.number("damping", out.damping, 0, 10);
    fields.whole(calibration, out.calibration_tokens, 16, 1ull << 30);
    fields.whole(sensitivity, out.sensitivity_tokens, 16, 1ull << 30);
    if (fields.has("bits")) {
      double bits = 0;
      fields.number("bits", bits, 1, 32);
      out.bits = bits;
    }
    RETORT_TRY(fields.result());
    if (out.method != QuantizePass::Method::kGptq && (fields.has("act_order") || fields.has("damping")))
      return fail(ErrorCode::kInvalid, at_line(where, node),
                  "'act_order' and 'damping' belong to method: gptq");
    if (!out.bits && (fields.has("candidates") || fields.has(sensitivity)))
      return fail(ErrorCode::kInvalid, at_line(where, node),
                  "'candidates' and '{}' belong to a budget of 'bits'", sensitivity);
    if (out.bits && fields.has("format"))
      return fail(
          ErrorCode::kInvalid, fields.at("format"),
          "'format' and 'bits' exclude each other: a budget chooses each matrix's format; 'formats' may "
          "fix some");
    if (fields.has("candidates")) {
      const YAML::Node list = fields.node("candidates");
      if (!list.IsSequence() || list.size() == 0)
        return fail(ErrorCode::kInvalid, fields.at("candidates"), "'candidates' must be a list of formats");
      out.candidates.clear();
      for (const YAML::Node& item : list)
        out.candidates.push_back(
            RETORT_TRY(format_named(item.IsScalar() ? item.Scalar() : "", "candidates", fields.at(item))));
    }
    RETORT_TRY(read_rules(fields, out));
    return out;
  }

  Result<Pass> activations(const YAML::Node& node) {
    ActivationPass out;
    Fields fields(node, where, "quantize.activations",
                  classification ? std::vector<std::string>{"method", "percentile", "calibration_examples",
                                                            "smooth", "dynamic", "bytes"}
                                 : std::vector<std::string>{"method", "percentile", "calibration_tokens",
                                                            "smooth", "dynamic"});
    std::string method = "minmax";
    fields.choice("method", method, {"minmax", "percentile", "mse", "kl"});
    using Method = ActivationPass::Method;
    out.method = method == "percentile" ? Method::kPercentile
                 : method == "mse"      ? Method::kMse
                 : method == "kl"       ? Method::kKl
                                        : Method::kMinMax;
    fields.number("percentile", out.percentile, 50, 100);
    if (fields.has("percentile") && out.method != Method::kPercentile)
      fields.refuse(fields.node("percentile"), "'percentile' belongs to method: percentile");
    out.calibration = classification ? 1024 : 16384;
    fields.whole(classification ? "calibration_examples" : "calibration_tokens", out.calibration, 16,
                 1ull << 40);
    fields.flag("bytes", out.bytes);
    if (fields.has("smooth")) fields.number("smooth", out.smooth.emplace(), 0, 1);
    RETORT_TRY(fields.result());
    if (fields.has("dynamic")) {
      out.dynamic.clear();
      if (fields.node("dynamic").IsSequence() && fields.node("dynamic").size() == 0) return out;  // none
      RETORT_TRY(texts(fields, "dynamic", out.dynamic));
    }
    return out;
  }

  Result<Pass> exported(const YAML::Node& node) {
    ExportPass out;
    Fields fields(node, where, "export", {"file", "kind", "format", "dtype", "label", "hf"});
    if (fields.need("file")) fields.text("file", out.file);
    std::string kind = "gguf", dtype = "F16";
    fields.flag("hf", out.also_huggingface);
    fields.choice("kind", kind, {"gguf", "huggingface"});
    fields.choice("dtype", dtype, {"F16", "F32"});
    RETORT_TRY(fields.result());
    out.label = std::filesystem::path(out.file).stem().string();
    fields.text("label", out.label);
    if (fields.has("format")) out.format = RETORT_TRY(format(fields, "format"));
    RETORT_TRY(fields.result());
    out.huggingface = kind == "huggingface";
    out.dtype = dtype == "F32" ? SafeTensor::DType::kF32 : SafeTensor::DType::kF16;
    if (out.file.find('/') != std::string::npos || out.file[0] == '.')
      return fail(ErrorCode::kInvalid, fields.at("file"),
                  "'file' must be a plain name inside the output folder");
    if (!out.huggingface && !out.file.ends_with(".gguf"))
      return fail(ErrorCode::kInvalid, fields.at("file"), "'{}' must end in .gguf (or say kind: huggingface)",
                  out.file);
    if (out.file.size() > 200)
      return fail(ErrorCode::kInvalid, fields.at("file"), "'file' must have at most 200 bytes");
    std::vector<std::string> names{out.file};
    if (out.also_huggingface) names.push_back(std::filesystem::path(out.file).stem().string());
    for (const std::string& name : names) {
      const bool ours =
          std::any_of(kOwnFiles.begin(), kOwnFiles.end(), [&](std::string_view own) { return name == own; });
      if (ours || name.starts_with("checkpoint-") || name.ends_with(".tmp"))
        return fail(ErrorCode::kInvalid, fields.at("file"), "'{}' is a name that the worker itself uses",
                    name);
    }
    if (out.huggingface ? fields.has("format") : fields.has("dtype"))
      return fail(ErrorCode::kInvalid, at_line(where, node),
                  "'format' belongs to gguf, 'dtype' to huggingface");
    return out;
  }

  /// One, or what a pass in steps comes to.
  Result<std::vector<Pass>> pass(const YAML::Node& node) {
    std::vector<std::string> names{
        "prune.vocabulary", "train",  "prune.structured", "prune.unstructured",   "distil.soft",
        "distil.sequence",  "distil", "quantize.aware",   "quantize.activations", "quantize.weights",
        "evaluate",         "export"};
    if (classification)
      names = {
          "train", "prune.structured", "distil.soft", "quantize.activations", "quantize.weights", "evaluate",
          "export"};
    if (!node.IsMap() || node.size() != 1)
      return fail(ErrorCode::kInvalid, at_line(where, node), "each pass is one line 'name: {{…}}' of {}",
                  fmt::join(names, ", "));
    const std::string name = node.begin()->first.Scalar();
    YAML::Node body = node.begin()->second;
    if (body.IsNull())  // an empty one, on the same line
      body = YAML::Load(std::string(static_cast<std::size_t>(std::max(0, node.Mark().line)), '\n') + "{}");
    if (classification && std::find(names.begin(), names.end(), name) == names.end()) {
      const auto meant = nearest(name, names);
      return fail(ErrorCode::kInvalid, at_line(where, node),
                  "there is no pass '{}' in task: classification; {}", name,
                  meant ? fmt::format("did you mean '{}'?", *meant)
                        : fmt::format("there are {}", fmt::join(names, ", ")));
    }
    if (name == "train" || name == "distil.soft" || name == "distil.sequence" || name == "distil" ||
        name == "quantize.aware")
      return std::vector{RETORT_TRY(optimise(body, name))};
    if (name == "prune.structured") return prune(body);
    if (name == "prune.vocabulary") {
      Fields fields(body, where, name, {"min_count"});
      VocabularyPass out;
      fields.whole("min_count", out.min_count, 1, 1ull << 40);
      RETORT_TRY(fields.result());
      return std::vector<Pass>{out};
    }
    if (name == "prune.unstructured") return sparse(body);
    if (name == "quantize.activations") return std::vector{RETORT_TRY(activations(body))};
    if (name == "export") return std::vector{RETORT_TRY(exported(body))};
    if (name == "quantize.weights") return std::vector{RETORT_TRY(quantize(body))};
    if (name == "evaluate") {
      Fields fields(body, where, name, {"label"});
      EvaluatePass out;
      fields.text("label", out.label);
      RETORT_TRY(fields.result());
      return std::vector<Pass>{out};
    }
    const auto near = nearest(name, names);
    return fail(ErrorCode::kInvalid, at_line(where, node), "unknown pass '{}'; {}", name,
                near ? fmt::format("did you mean '{}'?", *near)
                     : fmt::format("there are {}", fmt::join(names, ", ")));
  }

  /// What can be said of the passes' order without opening a model.
  Result<void> check_order(const Recipe& recipe) {
    bool quantized = false, scaled = false, sparse = false, exported = false;
    std::set<std::string> files;
    for (std::size_t i = 0; i < recipe.passes.size(); ++i) {
      const Pass& pass = recipe.passes[i];
      const std::string& place = recipe.place(i);
      const auto* optimise = std::get_if<OptimisePass>(&pass);
      const auto* prune = std::get_if<PrunePass>(&pass);
      const auto* quantize = std::get_if<QuantizePass>(&pass);
      if (i == 0 && recipe.teacher.empty() &&
          (optimise == nullptr || !(optimise->init || optimise->classifier)))
        return fail(ErrorCode::kInvalid, place,
                    "there is no model to work on: name a teacher, or begin with train and init");
      const auto* vocabulary = std::get_if<VocabularyPass>(&pass);
      if (vocabulary != nullptr && (i > 0 || recipe.teacher.empty() || !recipe.train))
        return fail(
            ErrorCode::kInvalid, place,
            "prune.vocabulary gives tokens new numbers for all that follows: it can only come first, and "
            "needs a teacher and data.train");
      if (optimise != nullptr && optimise->evaluate_every != 0 && !recipe.held_out)
        return fail(ErrorCode::kInvalid, place, "evaluate_every needs data.held_out");
      if (optimise != nullptr && (optimise->init || optimise->classifier) && i > 0)
        return fail(ErrorCode::kInvalid, place,
                    "train with init makes a new model, so it can only come first");
      if (optimise != nullptr && optimise->distil && recipe.teacher.empty())
        return fail(ErrorCode::kInvalid, place, "{} needs a teacher", pass_name(pass));
      const auto* zeros = std::get_if<SparsePass>(&pass);
      if (sparse && prune != nullptr)
        return fail(
            ErrorCode::kInvalid, place,
            "prune.structured cannot follow prune.unstructured; cut whole parts first, single weights "
            "afterwards");
      sparse |= zeros != nullptr;
      const auto* calibrated = std::get_if<ActivationPass>(&pass);
      if (calibrated != nullptr &&
          std::any_of(recipe.passes.begin(), recipe.passes.begin() + static_cast<std::ptrdiff_t>(i),
                      [](const Pass& p) { return std::holds_alternative<ActivationPass>(p); }))
        return fail(ErrorCode::kInvalid, place,
                    "inputs' scales are there already by an earlier quantize.activations");
      if (calibrated != nullptr && calibrated->smooth && quantized)
        return fail(ErrorCode::kInvalid, place,
                    "'smooth' moves weights that an earlier quantize.weights has rounded; smooth before");
      scaled |= calibrated != nullptr;
      if (scaled && quantize != nullptr && quantize->awq)
        return fail(
            ErrorCode::kInvalid, place,
            "'awq' would change the inputs whose scales an earlier quantize.activations found; leave it "
            "out, or smooth there instead");
      quantized |= calibrated != nullptr;
      if (quantized && (optimise != nullptr || prune != nullptr || zeros != nullptr))
        return fail(
            ErrorCode::kInvalid, place,
            "{} cannot follow quantize.weights or quantize.activations: its steps would undo them; quantize "
            "afterwards",
            pass_name(pass));
      if (quantize != nullptr &&
          std::any_of(recipe.passes.begin(), recipe.passes.begin() + static_cast<std::ptrdiff_t>(i),
                      [](const Pass& p) { return std::holds_alternative<QuantizePass>(p); }))
        return fail(ErrorCode::kInvalid, place,
                    "the weights are rounded already by an earlier quantize.weights");
      if ((optimise != nullptr || calibrated != nullptr || (prune != nullptr && prune->activation) ||
           (zeros != nullptr && zeros->wanda) || (quantize != nullptr && quantize->needs_calibration())) &&
          !recipe.train)
        return fail(ErrorCode::kInvalid, place, "{} needs data.train", pass_name(pass));
      if (std::holds_alternative<EvaluatePass>(pass) && !recipe.held_out)
        return fail(ErrorCode::kInvalid, place, "evaluate needs data.held_out");
      if (quantize != nullptr) quantized = true;
      if (const auto* out = std::get_if<ExportPass>(&pass)) {
        exported = true;
        const std::string stem = std::filesystem::path(out->file).stem().string();
        for (const std::string& name :
             out->also_huggingface ? std::vector{out->file, stem} : std::vector{out->file})
          if (!files.insert(name).second)
            return fail(ErrorCode::kInvalid, place, "two exports write '{}'", name);
      }
    }
    if (!exported)
      return fail(ErrorCode::kInvalid, recipe.place(0),
                  "no pass exports anything: add 'export: {{file: …}}'");
    return {};
  }
};

}  // namespace

std::optional<TensorType> fixed_format(const QuantizePass& pass, const std::string& name) {
  for (const QuantizePass::Rule& rule : pass.formats)
    if (::fnmatch(rule.match.c_str(), name.c_str(), 0) == 0) return rule.format;
  return std::nullopt;
}

TensorType format_of(const QuantizePass& pass, const std::string& name) {
  return fixed_format(pass, name).value_or(pass.format);
}

std::string_view pass_name(const Pass& pass) {
  struct Name {
    std::string_view operator()(const OptimisePass& p) const { return p.name; }
    std::string_view operator()(const VocabularyPass&) const { return "prune.vocabulary"; }
    std::string_view operator()(const PrunePass&) const { return "prune.structured"; }
    std::string_view operator()(const SparsePass&) const { return "prune.unstructured"; }
    std::string_view operator()(const QuantizePass&) const { return "quantize.weights"; }
    std::string_view operator()(const ActivationPass&) const { return "quantize.activations"; }
    std::string_view operator()(const EvaluatePass&) const { return "evaluate"; }
    std::string_view operator()(const ExportPass&) const { return "export"; }
  };
  return std::visit(Name{}, pass);
}

Result<Recipe> parse_recipe(const std::string& text, const std::filesystem::path& folder,
                            const std::string& where) {
  try {
    const YAML::Node root = YAML::Load(text);
    Reader reader{folder, where};
    Recipe recipe;
    recipe.where = where;
    recipe.sha256 = sha256_hex(text);
    Fields fields(root, where, "recipe", {"version", "task", "seed", "teacher", "data", "passes"});
    std::uint64_t version = 0;
    if (fields.need("version")) fields.whole("version", version, 1, 1);
    fields.whole("seed", recipe.seed, 0, INT64_MAX);
    std::string task = "language";
    fields.choice("task", task, {"language", "classification"});
    reader.classification = task == "classification";
    recipe.task = reader.classification ? Task::kClassification : Task::kLanguage;
    fields.need("passes");
    RETORT_TRY(fields.result());
    if (fields.has("teacher")) {
      Fields teacher(fields.node("teacher"), where, "teacher", {"model"});
      if (teacher.need("model")) teacher.path("model", recipe.teacher, folder, true);
      RETORT_TRY(teacher.result());
    }
    if (fields.has("data")) {
      Fields data(fields.node("data"), where, "data", {"train", "held_out"});
      RETORT_TRY(data.result());
      if (data.has("train")) recipe.train = RETORT_TRY(reader.data(data.node("train"), "data.train", false));
      if (data.has("held_out"))
        recipe.held_out = RETORT_TRY(reader.data(data.node("held_out"), "data.held_out", true));
    }
    const YAML::Node list = fields.node("passes");
    if (!list.IsSequence() || list.size() == 0)
      return fail(ErrorCode::kInvalid, fields.at("passes"), "'passes' must be a list of passes");
    for (const YAML::Node& item : list)
      for (Pass& pass : RETORT_TRY(reader.pass(item))) {
        recipe.passes.push_back(std::move(pass));
        recipe.places.push_back(at_line(where, item));
      }
    RETORT_TRY(reader.check_order(recipe));
    return recipe;
  } catch (const YAML::Exception& error) {
    return fail(
        ErrorCode::kInvalid, error.mark.is_null() ? where : fmt::format("{}:{}", where, error.mark.line + 1),
        "not valid YAML: {}{}", error.msg,
        text.find("\n\t") != std::string_view::npos ? " (YAML takes no tabs before a line's text)" : "");
  }
}

Result<Recipe> read_recipe(const std::filesystem::path& file) {
  const std::string text = RETORT_TRY(read_file(file, 1u << 20));
  if (!is_utf8(text)) return fail(ErrorCode::kInvalid, file.string(), "not UTF-8: save it as that");
  return parse_recipe(text, std::filesystem::absolute(file).parent_path(), file.string());
}

}  // namespace retort
