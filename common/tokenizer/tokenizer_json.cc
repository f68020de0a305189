#include <cmath>
#include <map>

#include "common/core/base64.h"
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
    return fail(
        ErrorCode::kUnsupported, where,
        "{} '{}' is not supported (BPE with SentencePiece's, GPT-2's, Llama 3's, Qwen 2's or SmolLM's "
        "splitting is, unigram, and BERT's WordPiece)",
        what, name);
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
  const bool unigram = model_type == "Unigram", wordpiece = model_type == "WordPiece";
  if (model_type != "BPE" && !unigram && !wordpiece) return unsupported("tokenizer model", model_type);

  auto impl = std::make_shared<Impl>();
  Impl& t = *impl;
  t.kind = unigram ? Kind::kUnigram : wordpiece ? Kind::kWordPiece : Kind::kSentencePiece;
  if (wordpiece) {
    for (const auto& [name, wanted] :
         {std::pair("normalizer", "BertNormalizer"), std::pair("pre_tokenizer", "BertPreTokenizer")})
      if (const std::string type = part(name) == nullptr ? "none" : type_of(*part(name)); type != wanted)
        return unsupported(name, type + " with WordPiece");
    const auto option = [&](const char* key, bool fallback) {
      const json::object& normalizer = *part("normalizer");
      return json_has(normalizer, key) ? json_bool(normalizer, key, where) : Result<bool>(fallback);
    };
    WordPiece& w = t.wordpiece;
    w.clean_text = RETORT_TRY(option("clean_text", true));
    w.chinese_characters = RETORT_TRY(option("handle_chinese_chars", true));
    w.lower_case = RETORT_TRY(option("lowercase", true));
    w.strip_accents = RETORT_TRY(option("strip_accents", w.lower_case));
    if (json_has(model, "max_input_chars_per_word"))
      w.max_word_characters = static_cast<std::uint32_t>(
          RETORT_TRY(json_uint(model, "max_input_chars_per_word", where, 1u << 20)));
    if (json_has(model, "continuing_subword_prefix") &&
        RETORT_TRY(json_string(model, "continuing_subword_prefix", where)) != WordPiece::kContinues)
      return unsupported("model option", "continuing_subword_prefix");
  }
  // A Sequence's parts, or the one there is.
  const auto parts = [&](const char* name, const char* list) -> Result<json::array> {
    const json::object* whole = part(name);
    if (whole == nullptr || wordpiece) return json::array();  // WordPiece's are read already
    if (type_of(*whole) != "Sequence") return json::array{*whole};
    return *RETORT_TRY(json_array(*whole, list, where));
  };
  const auto pattern_of = [](const json::object& object) -> std::string {
    const json::value* pattern = object.if_contains("pattern");
    if (pattern != nullptr && pattern->is_object())
      for (const char* kind : {"Regex", "String"})
        if (const json::value* expression = pattern->get_object().if_contains(kind);
            expression != nullptr && expression->is_string())
          return std::string(expression->get_string());
    return "";
  };
  bool one_space = false, nfc = false;
  for (const json::value& step : RETORT_TRY(parts("normalizer", "normalizers"))) {
    const json::object& object = *RETORT_TRY(as_object(step, where));
    const std::string type = type_of(object);
    const auto content = [&](const char* key) -> std::string {
      const json::value* value = object.if_contains(key);
      return value != nullptr && value->is_string() ? std::string(value->get_string()) : "";
    };
    if (!unigram && type == "NFC") {
      nfc = true;
    } else if (!unigram && type == "Prepend" && content("prepend") == kSpace) {
      t.space_prefix = true;
    } else if (!unigram && type == "Replace" && content("content") == kSpace) {
      t.escape_spaces = true;
    } else if (unigram && type == "Precompiled" && t.charsmap.empty() && !t.strip_right && !one_space) {
      const json::value* map = object.if_contains("precompiled_charsmap");
      if (map != nullptr && map->is_string()) {
        const auto bytes = decode_base64(map->get_string());
        if (!bytes)
          return fail(ErrorCode::kInvalid, where, "the normalizer's precompiled_charsmap is not base64");
        t.charsmap =
            RETORT_TRY(CharsMap::parse({reinterpret_cast<const char*>(bytes->data()), bytes->size()}, where));
      }
    } else if (unigram && type == "Strip" && flag(object, "strip_right") && !flag(object, "strip_left") &&
               !one_space) {
      t.strip_right = true;
    } else if (unigram && type == "Replace" && pattern_of(object) == " {2,}" &&
               (content("content") == kSpace || content("content") == " ") && t.strip_right) {
      one_space = true;
    } else {
      return unsupported("normalizer", type + (unigram ? " (with the options it has, at its place)" : ""));
    }
  }
  if (t.strip_right != one_space)
    return unsupported("normalizer", "Strip without Replace of ' {2,}' after it");
  t.merge_spaces = one_space;
  t.by_grapheme = true;
  bool metaspace = false, digits = false;
  std::optional<Splitter> splitter;
  for (const json::value& step : RETORT_TRY(parts("pre_tokenizer", "pretokenizers"))) {
    const json::object& object = *RETORT_TRY(as_object(step, where));
    const std::string type = type_of(object);
    if (t.kind == Kind::kByteLevel || metaspace) return unsupported("pre-tokenizer after the last", type);
    if (!unigram && type == "Split" && !splitter && !digits) {
      const std::string pattern = pattern_of(object);
      splitter = splitter_of_pattern(pattern);
      const json::value* behavior = object.if_contains("behavior");
      if (!splitter) return unsupported("pre-tokenizer Split at", pattern);
      if (flag(object, "invert") || behavior == nullptr || *behavior != "Isolated")
        return unsupported("pre-tokenizer option", "behavior or invert of Split");
    } else if (!unigram && type == "Digits" && flag(object, "individual_digits") && !splitter) {
      digits = true;
    } else if (!unigram && type == "ByteLevel") {
      const bool by_regex = !json_has(object, "use_regex") || flag(object, "use_regex");
      if (flag(object, "add_prefix_space")) return unsupported("pre-tokenizer option", "add_prefix_space");
      if (by_regex && splitter) return unsupported("pre-tokenizer option", "use_regex after Split");
      if (!by_regex && !splitter) return unsupported("pre-tokenizer option", "use_regex: false");
      t.kind = Kind::kByteLevel;
      t.pre.splitter = splitter.value_or(digits ? Splitter::kDigits : Splitter::kGpt2);
    } else if (unigram && type == "WhitespaceSplit" && !one_space) {
      t.merge_spaces = t.split_all_space = true;
    } else if (type == "Metaspace") {
      metaspace = true;
      const json::value* scheme = object.if_contains("prepend_scheme");
      const std::string when =
          scheme == nullptr || !scheme->is_string()
              ? (json_has(object, "add_prefix_space") && !flag(object, "add_prefix_space") ? "never"
                                                                                           : "always")
              : std::string(scheme->get_string());
      const json::value* replacement = object.if_contains("replacement");
      const bool splits = !json_has(object, "split") || flag(object, "split");
      if (replacement != nullptr && *replacement != json::string_view(kSpace))
        return unsupported("pre-tokenizer option", "replacement");
      if (!unigram && splits) return unsupported("pre-tokenizer option", "split of Metaspace");
      if (t.split_all_space && when != "always")
        return unsupported("prepend_scheme after WhitespaceSplit", when);
      t.escape_spaces = true;
      t.split_pieces = splits;
      t.space_prefix = when != "never";
      t.prefix_always = when == "always";
    } else {
      return unsupported("pre-tokenizer", type);
    }
  }
  if ((splitter || digits || nfc) && t.kind != Kind::kByteLevel)
    return unsupported("pre-tokenizer or normalizer", "Split, Digits or NFC without ByteLevel");
  if (unigram && !metaspace) return unsupported("pre-tokenizer", "other than Metaspace for unigram");
  t.pre.nfc = nfc;
  for (const char* option : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (const json::value* value = model.if_contains(option);
        value != nullptr && value->is_string() && !value->get_string().empty() && !wordpiece)
      return unsupported("model option", option);
  if (json_has(model, "dropout") &&
      !(model.at("dropout").is_number() && model.at("dropout").to_number<double>() == 0))
    return unsupported("model option", "dropout");
  t.pre.ignore_merges = flag(model, "ignore_merges");
  if (t.pre.ignore_merges && t.kind != Kind::kByteLevel)
    return unsupported("model option", "ignore_merges without ByteLevel");
  const bool byte_fallback = t.byte_fallback = flag(model, "byte_fallback");
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
  const auto type_in_model = [&](std::string_view content) {
    const bool is_byte =
        byte_fallback && content.size() == 6 && content.starts_with("<0x") && content.ends_with(">");
    return is_byte ? TokenType::kByte : TokenType::kNormal;
  };
  if (unigram) {
    for (const json::value& value : *RETORT_TRY(json_array(model, "vocab", where))) {
      if (!value.is_array() || value.get_array().size() != 2 || !value.get_array()[0].is_string() ||
          !value.get_array()[1].is_number())
        return fail(ErrorCode::kInvalid, where, "token {} is not a pair of a text and a score",
                    t.scores.size());
      std::string content(value.get_array()[0].get_string());
      const auto score = static_cast<float>(value.get_array()[1].to_number<double>());
      if (!std::isfinite(score))
        return fail(ErrorCode::kInvalid, where, "token '{}' has no finite score", content);
      const TokenType type = type_in_model(content);
      RETORT_TRY(enter(static_cast<std::int64_t>(t.scores.size()), std::move(content), type));
      t.scores.push_back(score);
    }
  } else {
    for (const auto& member : *RETORT_TRY(json_object(model, "vocab", where))) {
      if (!member.value().is_int64())
        return fail(ErrorCode::kInvalid, where, "token '{}' has no integer id",
                    std::string_view(member.key()));
      const TokenType type = type_in_model(member.key());
      RETORT_TRY(enter(member.value().get_int64(), std::string(member.key()), type));
    }
  }
  if (json_has(root, "added_tokens"))
    for (const json::value& value : *RETORT_TRY(json_array(root, "added_tokens", where))) {
      const json::object& token = *RETORT_TRY(as_object(value, where));
      const std::int64_t id = RETORT_TRY(json_int(token, "id", where));
      RETORT_TRY(enter(id, RETORT_TRY(json_string(token, "content", where)),
                       flag(token, "special") ? TokenType::kControl : TokenType::kUserDefined));
      const AddedToken how{.lstrip = flag(token, "lstrip"),
                           .rstrip = flag(token, "rstrip"),
                           .single_word = flag(token, "single_word"),
                           .normalized = flag(token, "normalized") && t.kind != Kind::kSentencePiece};
      if (how.lstrip || how.rstrip || how.single_word || how.normalized)
        t.added[static_cast<TokenId>(id)] = how;
    }
  for (auto& [id, entry] : entries) {
    if (id != static_cast<std::int64_t>(t.tokens.size()))
      return fail(ErrorCode::kInvalid, where, "no token has id {}", t.tokens.size());
    if (t.tokens.find(entry.first) >= 0)
      return fail(ErrorCode::kInvalid, where, "token '{}' is there twice", entry.first);
    t.tokens.add(entry.first);
    t.types.push_back(entry.second);
  }
  if (t.tokens.size() == 0) return fail(ErrorCode::kInvalid, where, "the vocabulary has 0 tokens");
  const auto id_of = [&](std::string_view content) { return t.tokens.find(content); };
  if (unigram) {
    t.scores.resize(t.tokens.size());
    if (json_has(model, "unk_id"))
      t.unknown = static_cast<TokenId>(RETORT_TRY(json_uint(model, "unk_id", where, t.tokens.size() - 1)));
    if (t.unknown >= 0) t.types[static_cast<std::size_t>(t.unknown)] = TokenType::kUnknown;
  }
  if (const json::value* unknown = model.if_contains("unk_token");
      unknown != nullptr && unknown->is_string()) {
    t.unknown = id_of(unknown->get_string());
    if (t.unknown < 0)
      return fail(ErrorCode::kInvalid, where, "the unknown token '{}' is not in the vocabulary",
                  std::string_view(unknown->get_string()));
    t.types[static_cast<std::size_t>(t.unknown)] = TokenType::kUnknown;
  }
  std::uint32_t rank = 0;
  const json::array none;
  for (const json::value& value :
       unigram || wordpiece ? none : *RETORT_TRY(json_array(model, "merges", where))) {
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
    t.merges.add({a, b, merged});
    ++rank;
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
    if (type == "BertProcessing") {
      for (const auto& [key, id] : {std::pair("cls", &t.bos), std::pair("sep", &t.eos)}) {
        const json::array& pair = *RETORT_TRY(json_array(post, key, where));
        if (pair.empty() || !pair[0].is_string())
          return fail(ErrorCode::kInvalid, where, "the post-processor's '{}' is not a token and its id", key);
        *id = id_of(pair[0].get_string());
      }
      t.add_bos = t.add_eos = has_template = true;
      continue;
    }
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
    RETORT_TRY(named(wordpiece ? "cls_token" : "bos_token", t.bos));
    RETORT_TRY(named(wordpiece ? "sep_token" : "eos_token", t.eos));
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
  if (wordpiece) t.mask = id_of("[MASK]"), t.padding = id_of("[PAD]");
  RETORT_TRY(t.finish(where));
  return Tokenizer(std::move(impl));
}

}  // namespace retort
