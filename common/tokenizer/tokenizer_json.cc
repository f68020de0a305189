#include <map>

#include "common/core/file.h"
#include "common/core/json.h"
#include "common/tokenizer/tokenizer_impl.h"

namespace retort {

Result<Tokenizer> Tokenizer::from_huggingface(const std::filesystem::path& path) {
  const std::string text = RETORT_TRY(read_file(path, 256u << 20));
  const std::filesystem::path config = path.parent_path() / "tokenizer_config.json";
  std::string config_text;
  if (std::filesystem::exists(config)) config_text = RETORT_TRY(read_file(config, 16u << 20));
  Tokenizer out = RETORT_TRY(from_huggingface_text(text, config_text, path.string()));
  const std::filesystem::path chat =
      path.parent_path() / "chat_template.jinja";  // newer folders keep it apart
  if (!std::filesystem::exists(chat)) return out;
  auto impl = std::make_shared<Impl>(*out.impl_);
  impl->chat_template = RETORT_TRY(read_file(chat, 1u << 20));
  return Tokenizer(std::move(impl));
}

Result<Tokenizer> Tokenizer::from_huggingface_text(std::string_view text, std::string_view config_text,
                                                   std::string_view where_view) {
  const std::string where(where_view);
  const json::value document = RETORT_TRY(parse_json(text, where));
  const json::object& root = *RETORT_TRY(as_object(document, where));
  const json::object& model = *RETORT_TRY(json_object(root, "model", where));
  const auto unsupported = [&](std::string_view what, std::string_view name) {
    return fail(ErrorCode::kUnsupported, where,
                "{} '{}' is not supported (BPE with SentencePiece or GPT-2 splitting is)", what, name);
  };
  const auto type_of = [](const json::object& object) -> std::string {
    const json::value* type = object.if_contains("type");
    return type != nullptr && type->is_string() ? std::string(type->get_string()) : "";
  };
  const auto part = [&](const char* name) -> const json::object* {
    const json::value* value = root.if_contains(name);
    return value != nullptr && value->is_object() ? &value->get_object() : nullptr;
  };
  const auto flag = [](const json::object& object, const char* name) {
    const json::value* value = object.if_contains(name);
    return value != nullptr && value->is_bool() && value->get_bool();
  };
  std::string model_type = type_of(model);
  if (model_type.empty() && json_has(model, "merges")) model_type = "BPE";  // older files leave it out
  if (model_type != "BPE") return unsupported("tokenizer model", model_type);

  auto impl = std::make_shared<Impl>();
  Impl& t = *impl;
  t.kind = Kind::kSentencePiece;
  if (const json::object* normalizer = part("normalizer")) {
    const json::array single{*normalizer};
    const json::array* steps = &single;
    if (type_of(*normalizer) == "Sequence") steps = RETORT_TRY(json_array(*normalizer, "normalizers", where));
    for (const json::value& step : *steps) {
      const json::object& object = *RETORT_TRY(as_object(step, where));
      const std::string type = type_of(object);
      if (type == "Prepend" && RETORT_TRY(json_string(object, "prepend", where)) == kSpace)
        t.space_prefix = true;
      else if (type == "Replace" && RETORT_TRY(json_string(object, "content", where)) == kSpace)
        t.escape_spaces = true;
      else
        return unsupported("normalizer", type);
    }
  }
  if (const json::object* splitter = part("pre_tokenizer")) {
    const std::string type = type_of(*splitter);
    if (type == "ByteLevel") {
      if (flag(*splitter, "add_prefix_space")) return unsupported("pre-tokenizer option", "add_prefix_space");
      if (json_has(*splitter, "use_regex") && !flag(*splitter, "use_regex"))
        return unsupported("pre-tokenizer option", "use_regex: false");
      t.kind = Kind::kByteLevel;
    } else if (type == "Metaspace" && json_has(*splitter, "split") && !flag(*splitter, "split")) {
      const json::value* scheme = splitter->if_contains("prepend_scheme");
      t.escape_spaces = true;
      t.space_prefix = scheme == nullptr || !scheme->is_string() || scheme->get_string() != "never";
    } else {
      return unsupported("pre-tokenizer", type);
    }
  }
  for (const char* option : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (const json::value* value = model.if_contains(option);
        value != nullptr && value->is_string() && !value->get_string().empty())
      return unsupported("model option", option);
  if (json_has(model, "dropout") &&
      !(model.at("dropout").is_number() && model.at("dropout").to_number<double>() == 0))
    return unsupported("model option", "dropout");
  if (flag(model, "ignore_merges")) return unsupported("model option", "ignore_merges");
  const bool byte_fallback = flag(model, "byte_fallback");
  t.fuse_unknown = flag(model, "fuse_unk");

  // The vocabulary: ids must be 0…n-1 over model.vocab and added_tokens together.
  std::map<std::int64_t, std::pair<std::string, TokenType>> entries;
  const auto enter = [&](std::int64_t id, std::string content, TokenType type) -> Result<void> {
    if (id < 0 || id >= static_cast<std::int64_t>(kMaxVocabulary))
      return fail(ErrorCode::kInvalid, where, "token '{}' has id {}, outside 0…{}", content, id,
                  kMaxVocabulary);
    const auto [at, fresh] = entries.try_emplace(id, content, type);
    if (!fresh && at->second.first != content)
      return fail(ErrorCode::kInvalid, where, "tokens '{}' and '{}' share id {}", at->second.first, content,
                  id);
    at->second.second = type;
    return {};
  };
  for (const auto& member : *RETORT_TRY(json_object(model, "vocab", where))) {
    if (!member.value().is_int64())
      return fail(ErrorCode::kInvalid, where, "token '{}' has no integer id", std::string_view(member.key()));
    std::string content(member.key());
    const bool is_byte =
        byte_fallback && content.size() == 6 && content.starts_with("<0x") && content.ends_with(">");
    RETORT_TRY(enter(member.value().get_int64(), std::move(content),
                     is_byte ? TokenType::kByte : TokenType::kNormal));
  }
  if (json_has(root, "added_tokens"))
    for (const json::value& value : *RETORT_TRY(json_array(root, "added_tokens", where))) {
      const json::object& token = *RETORT_TRY(as_object(value, where));
      RETORT_TRY(enter(RETORT_TRY(json_int(token, "id", where)),
                       RETORT_TRY(json_string(token, "content", where)),
                       flag(token, "special") ? TokenType::kControl : TokenType::kUserDefined));
    }
  for (auto& [id, entry] : entries) {
    if (id != static_cast<std::int64_t>(t.tokens.size()))
      return fail(ErrorCode::kInvalid, where, "no token has id {}", t.tokens.size());
    if (t.tokens.find(entry.first) >= 0)
      return fail(ErrorCode::kInvalid, where, "token '{}' is there twice", entry.first);
    t.tokens.add(entry.first);
    t.types.push_back(entry.second);
  }
  const auto id_of = [&](std::string_view content) { return t.tokens.find(content); };
  if (const json::value* unknown = model.if_contains("unk_token");
      unknown != nullptr && unknown->is_string()) {
    t.unknown = id_of(unknown->get_string());
    if (t.unknown < 0)
      return fail(ErrorCode::kInvalid, where, "the unknown token '{}' is not in the vocabulary",
                  std::string_view(unknown->get_string()));
    t.types[static_cast<std::size_t>(t.unknown)] = TokenType::kUnknown;
  }
  std::uint32_t rank = 0;
  for (const json::value& value : *RETORT_TRY(json_array(model, "merges", where))) {
    std::string left, right;
    if (value.is_string()) {
      const std::string_view both = value.get_string();
      const std::size_t space = both.find(' ');
      if (space == std::string_view::npos)
        return fail(ErrorCode::kInvalid, where, "merge {} '{}' is not a pair", rank, both);
      left = both.substr(0, space);
      right = both.substr(space + 1);
    } else if (value.is_array() && value.get_array().size() == 2 && value.get_array()[0].is_string() &&
               value.get_array()[1].is_string()) {
      left = value.get_array()[0].get_string();
      right = value.get_array()[1].get_string();
    } else {
      return fail(ErrorCode::kInvalid, where, "merge {} is not a pair of texts", rank);
    }
    const TokenId a = id_of(left), b = id_of(right), merged = id_of(left + right);
    if (a < 0 || b < 0 || merged < 0)
      return fail(ErrorCode::kInvalid, where, "merge {} '{} {}' uses a token that is not in the vocabulary",
                  rank, left, right);
    t.merges.add({a, b, merged, rank++});
  }
  // What is added around a text: the template's special tokens, or tokenizer_config.json's switches.
  bool has_template = false;
  json::array processors;
  if (const json::object* post = part("post_processor")) {
    if (type_of(*post) == "Sequence")
      processors = *RETORT_TRY(json_array(*post, "processors", where));
    else
      processors.push_back(*post);
  }
  for (const json::value& processor : processors) {
    const json::object& post = *RETORT_TRY(as_object(processor, where));
    const std::string type = type_of(post);
    if (type == "ByteLevel") continue;  // it only trims offsets
    if (type != "TemplateProcessing") return unsupported("post-processor", type);
    has_template = true;
    bool after = false;
    for (const json::value& piece : *RETORT_TRY(json_array(post, "single", where))) {
      const json::object& object = *RETORT_TRY(as_object(piece, where));
      if (object.contains("Sequence")) after = true;
      if (const json::value* token = object.if_contains("SpecialToken");
          token != nullptr && token->is_object()) {
        const TokenId id = id_of(RETORT_TRY(json_string(token->get_object(), "id", where)));
        (after ? t.eos : t.bos) = id;
        (after ? t.add_eos : t.add_bos) = true;
      }
    }
  }
  if (!config_text.empty()) {
    const std::string config_where = where + " (tokenizer_config.json)";
    const json::value config_document = RETORT_TRY(parse_json(config_text, config_where));
    const json::object& config = *RETORT_TRY(as_object(config_document, config_where));
    const auto named = [&](const char* key, TokenId& id) -> Result<void> {
      const json::value* value = config.if_contains(key);
      if (value != nullptr && value->is_object()) value = value->get_object().if_contains("content");
      if (value == nullptr || !value->is_string()) return {};
      id = id_of(value->get_string());
      if (id < 0)
        return fail(ErrorCode::kInvalid, config_where, "{} '{}' is not in the vocabulary", key,
                    std::string_view(value->get_string()));
      return {};
    };
    RETORT_TRY(named("bos_token", t.bos));
    RETORT_TRY(named("eos_token", t.eos));
    if (const json::value* chat = config.if_contains("chat_template"); chat != nullptr && chat->is_string()) {
      t.chat_template = chat->get_string();
    } else if (chat != nullptr && chat->is_array()) {  // several, each with a name
      for (const json::value& entry : chat->get_array()) {
        const json::object& object = *RETORT_TRY(as_object(entry, config_where));
        if (RETORT_TRY(json_string(object, "name", config_where)) == "default")
          t.chat_template = RETORT_TRY(json_string(object, "template", config_where));
      }
    }
    if (!has_template) {
      t.add_bos = flag(config, "add_bos_token");
      t.add_eos = flag(config, "add_eos_token");
    }
  }
  RETORT_TRY(t.finish(where));
  return Tokenizer(std::move(impl));
}

}  // namespace retort
