#include "coordinator/worker/recipe.h"

#include <yaml-cpp/yaml.h>

#include <cmath>
#include <set>

#include "common/core/file.h"
#include "common/core/json.h"
#include "common/core/sha256.h"

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

  template <typename T>
  void whole(const char* key, T& out, std::uint64_t low, std::uint64_t high) {
    if (!has(key)) return;
    std::uint64_t value = 0;
    const std::string text = node_[key].IsScalar() ? node_[key].Scalar() : "";
    const bool digits = !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
    if (!digits || !YAML::convert<std::uint64_t>::decode(node_[key], value) || value < low || value > high) {
      refuse(node_[key],
             fmt::format("'{}' must be a whole number from {} to {}, not '{}'", key, low, high, text));
      return;
    }
    out = static_cast<T>(value);
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
    out = node_[key].Scalar();
  }
  void choice(const char* key, std::string& out, const std::vector<std::string>& choices) {
    text(key, out);
    if (error_ || !has(key) || std::find(choices.begin(), choices.end(), out) != choices.end()) return;
    const auto near = nearest(out, choices);
    refuse(node_[key], fmt::format("'{}' is '{}', but can only be {}{}", key, out, fmt::join(choices, ", "),
                                   near ? fmt::format("; did you mean '{}'?", *near) : ""));
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

struct Reader {
  std::filesystem::path folder;
  std::string where;

  Result<DataFile> data(const YAML::Node& node, const std::string& name, bool held_out) {
    std::vector<std::string> keys{"file", "limit_documents"};
    if (held_out) keys.push_back("max_tokens");
    Fields fields(node, where, name, keys);
    DataFile out;
    if (fields.need("file")) fields.path("file", out.file, folder, false);
    fields.whole("limit_documents", out.limit_documents, 1, 1ull << 40);
    fields.whole("max_tokens", out.max_tokens, 1, 1ull << 40);
    RETORT_TRY(fields.result());
    return out;
  }

  Result<Pass> optimise(const YAML::Node& node, bool distil) {
    OptimisePass out;
    out.distil = distil;
    std::vector<std::string> keys{"tokens",       "batch_tokens",      "context", "learning_rate",
                                  "warmup",       "schedule",          "decay",   "clip",
                                  "weight_decay", "checkpoint_seconds"};
    if (distil)
      keys.insert(keys.end(), {"temperature", "alpha"});
    else
      keys.push_back("init");
    Fields fields(node, where, distil ? "distil.soft" : "train", keys);
    if (fields.need("tokens")) fields.whole("tokens", out.tokens, 1, 1ull << 50);
    fields.whole("batch_tokens", out.batch_tokens, 1, 1u << 24);
    fields.whole("context", out.context, 2, 1u << 20);
    if (!fields.has("init")) out.learning_rate = 2e-4;  // 1e-3 undoes what a cut model still knows
    fields.number("learning_rate", out.learning_rate, 1e-9, 1);
    fields.number("warmup", out.warmup, 0, 1);
    fields.number("decay", out.decay, 0, 1);
    fields.number("clip", out.clip, 1e-6, 1e6);
    fields.number("weight_decay", out.weight_decay, 0, 10);
    fields.number("temperature", out.temperature, 0.05, 100);
    fields.number("alpha", out.alpha, 0, 1);
    fields.whole("checkpoint_seconds", out.checkpoint_seconds, 1, 86400);
    std::string schedule = "cosine";
    fields.choice("schedule", schedule, {"cosine", "wsd", "constant"});
    out.schedule = schedule == "wsd"        ? OptimisePass::Schedule::kWsd
                   : schedule == "constant" ? OptimisePass::Schedule::kConstant
                                            : OptimisePass::Schedule::kCosine;
    RETORT_TRY(fields.result());
    if (!distil && fields.has("init")) {
      Fields shape(fields.node("init"), where, "init",
                   {"hidden", "layers", "heads", "kv_heads", "ffn", "context", "tokenizer"});
      InitShape init;
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
      if (init.heads % init.kv_heads != 0 || init.hidden % init.heads != 0 ||
          init.hidden / init.heads % 2 != 0)
        return fail(ErrorCode::kInvalid, fields.at("init"),
                    "kv_heads must divide heads, and hidden / heads must be an even whole number");
      out.init = init;
    }
    return out;
  }

  Result<Pass> prune(const YAML::Node& node) {
    PrunePass out;
    Fields fields(node, where, "prune.structured",
                  {"layers", "ffn", "heads", "kv_heads", "importance", "calibration_tokens"});
    const auto optional = [&](const char* key, std::optional<std::uint32_t>& value, std::uint32_t high) {
      if (!fields.has(key)) return;
      std::uint32_t number = 0;
      fields.whole(key, number, 1, high);
      value = number;
    };
    optional("layers", out.layers, 1u << 10);
    optional("ffn", out.ffn, 1u << 20);
    optional("heads", out.heads, 1u << 12);
    optional("kv_heads", out.kv_heads, 1u << 12);
    std::string importance = "activation";
    fields.choice("importance", importance, {"activation", "magnitude"});
    out.activation = importance == "activation";
    fields.whole("calibration_tokens", out.calibration_tokens, 16, 1ull << 40);
    RETORT_TRY(fields.result());
    if (!out.layers && !out.ffn && !out.heads && !out.kv_heads)
      return fail(ErrorCode::kInvalid, at_line(where, node),
                  "prune.structured needs a target: layers, ffn, heads or kv_heads");
    return out;
  }

  Result<TensorType> format(Fields& fields, const char* key) {
    std::string name = "Q8_0";
    fields.text(key, name);
    RETORT_TRY(fields.result());
    const auto type = tensor_type_from(name);
    if (!type)
      return fail(
          ErrorCode::kInvalid, fields.at(key),
          "'{}' is '{}', but can only be F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q4_K, Q3_K, Q4_0 or IQ4_NL", key,
          name);
    return *type;
  }

  Result<Pass> exported(const YAML::Node& node) {
    ExportPass out;
    Fields fields(node, where, "export", {"file", "kind", "format", "dtype", "label", "hf"});
    if (fields.need("file")) fields.text("file", out.file);
    std::string kind = "gguf", dtype = "F16", also = "false";
    fields.choice("hf", also, {"true", "false"});
    fields.choice("kind", kind, {"gguf", "huggingface"});
    fields.choice("dtype", dtype, {"F16", "F32"});
    RETORT_TRY(fields.result());
    out.label = std::filesystem::path(out.file).stem().string();
    fields.text("label", out.label);
    if (fields.has("format")) out.format = RETORT_TRY(format(fields, "format"));
    RETORT_TRY(fields.result());
    out.huggingface = kind == "huggingface";
    out.also_huggingface = also == "true";
    out.dtype = dtype == "F32" ? SafeTensor::DType::kF32 : SafeTensor::DType::kF16;
    if (out.file.find('/') != std::string::npos || out.file[0] == '.')
      return fail(ErrorCode::kInvalid, fields.at("file"),
                  "'file' must be a plain name inside the output folder");
    if (!out.huggingface && !out.file.ends_with(".gguf"))
      return fail(ErrorCode::kInvalid, fields.at("file"), "'{}' must end in .gguf (or say kind: huggingface)",
                  out.file);
    for (const char* reserved : {"teacher.gguf", "result.json", "state.json", "progress.jsonl", "worker.lock",
                                 "cancel", "finish", "eval.json"})
      if (out.file == reserved)
        return fail(ErrorCode::kInvalid, fields.at("file"), "'{}' is a name that the worker itself uses",
                    out.file);
    if (out.huggingface ? fields.has("format") : fields.has("dtype"))
      return fail(ErrorCode::kInvalid, at_line(where, node),
                  "'format' belongs to gguf, 'dtype' to huggingface");
    return out;
  }

  Result<Pass> pass(const YAML::Node& node) {
    const std::vector<std::string> names{
        "train", "prune.structured", "distil.soft", "quantize.weights", "evaluate", "export"};
    if (!node.IsMap() || node.size() != 1)
      return fail(ErrorCode::kInvalid, at_line(where, node), "each pass is one line 'name: {{…}}' of {}",
                  fmt::join(names, ", "));
    const std::string name = node.begin()->first.Scalar();
    YAML::Node body = node.begin()->second;
    if (body.IsNull()) body = YAML::Load("{}");
    if (name == "train") return optimise(body, false);
    if (name == "distil.soft") return optimise(body, true);
    if (name == "prune.structured") return prune(body);
    if (name == "export") return exported(body);
    if (name == "quantize.weights") {
      Fields fields(body, where, name, {"format"});
      RETORT_TRY(fields.result());
      return QuantizePass{RETORT_TRY(format(fields, "format"))};
    }
    if (name == "evaluate") {
      Fields fields(body, where, name, {"label"});
      EvaluatePass out;
      fields.text("label", out.label);
      RETORT_TRY(fields.result());
      return out;
    }
    const auto near = nearest(name, names);
    return fail(ErrorCode::kInvalid, at_line(where, node), "unknown pass '{}'; {}", name,
                near ? fmt::format("did you mean '{}'?", *near)
                     : fmt::format("there are {}", fmt::join(names, ", ")));
  }

  /// What can be said of the passes' order without opening a model.
  Result<void> check_order(const Recipe& recipe, const YAML::Node& list) {
    bool quantized = false, exported = false;
    std::set<std::string> files;
    for (std::size_t i = 0; i < recipe.passes.size(); ++i) {
      const Pass& pass = recipe.passes[i];
      const std::string place = at_line(where, list[i]);
      const auto* optimise = std::get_if<OptimisePass>(&pass);
      const auto* prune = std::get_if<PrunePass>(&pass);
      if (i == 0 && recipe.teacher.empty() && (optimise == nullptr || !optimise->init))
        return fail(ErrorCode::kInvalid, place,
                    "there is no model to work on: name a teacher, or begin with train and init");
      if (optimise != nullptr && optimise->init && i > 0)
        return fail(ErrorCode::kInvalid, place,
                    "train with init makes a new model, so it can only come first");
      if (optimise != nullptr && optimise->distil && recipe.teacher.empty())
        return fail(ErrorCode::kInvalid, place, "distil.soft needs a teacher");
      if (quantized && (optimise != nullptr || prune != nullptr))
        return fail(
            ErrorCode::kInvalid, place,
            "{} cannot follow quantize.weights: its steps would undo the rounding; quantize afterwards",
            pass_name(pass));
      if ((optimise != nullptr || (prune != nullptr && prune->activation)) && !recipe.train)
        return fail(ErrorCode::kInvalid, place, "{} needs data.train", pass_name(pass));
      if (std::holds_alternative<EvaluatePass>(pass) && !recipe.held_out)
        return fail(ErrorCode::kInvalid, place, "evaluate needs data.held_out");
      if (std::holds_alternative<QuantizePass>(pass)) quantized = true;
      if (const auto* out = std::get_if<ExportPass>(&pass)) {
        exported = true;
        if (!files.insert(out->file).second)
          return fail(ErrorCode::kInvalid, place, "two exports write '{}'", out->file);
      }
    }
    if (!exported)
      return fail(ErrorCode::kInvalid, at_line(where, list),
                  "no pass exports anything: add 'export: {{file: …}}'");
    return {};
  }
};

}  // namespace

std::string_view pass_name(const Pass& pass) {
  struct Name {
    std::string_view operator()(const OptimisePass& p) const { return p.distil ? "distil.soft" : "train"; }
    std::string_view operator()(const PrunePass&) const { return "prune.structured"; }
    std::string_view operator()(const QuantizePass&) const { return "quantize.weights"; }
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
    Fields fields(root, where, "recipe", {"version", "seed", "teacher", "data", "passes"});
    std::uint64_t version = 0;
    if (fields.need("version")) fields.whole("version", version, 1, 1);
    fields.whole("seed", recipe.seed, 0, INT64_MAX);
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
    for (const YAML::Node& item : list) recipe.passes.push_back(RETORT_TRY(reader.pass(item)));
    RETORT_TRY(reader.check_order(recipe, list));
    return recipe;
  } catch (const YAML::Exception& error) {
    return fail(ErrorCode::kInvalid,
                error.mark.is_null() ? where : fmt::format("{}:{}", where, error.mark.line + 1),
                "not valid YAML: {}", error.msg);
  }
}

Result<Recipe> read_recipe(const std::filesystem::path& file) {
  const std::string text = RETORT_TRY(read_file(file, 1u << 20));
  return parse_recipe(text, std::filesystem::absolute(file).parent_path(), file.string());
}

}  // namespace retort
