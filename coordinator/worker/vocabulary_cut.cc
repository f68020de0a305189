#include "coordinator/worker/vocabulary_cut.h"

#include <algorithm>
#include <charconv>
#include <functional>
#include <map>
#include <unordered_map>

#include "common/core/json.h"

namespace retort {
namespace {

/// Characters of UTF-8 text, as many as there are first bytes.
std::size_t characters(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

bool is_byte(std::string_view text) {
  return text.size() == 6 && text.starts_with("<0x") && text.ends_with('>');
}

/// The two texts of a merge, which is written "a b" or ["a", "b"].
std::optional<std::pair<std::string, std::string>> parts_of(const json::value& merge) {
  if (merge.is_string()) {
    const std::string_view both = merge.get_string();
    const std::size_t space = both.find(' ');
    if (space == std::string_view::npos) return std::nullopt;
    return std::pair(std::string(both.substr(0, space)), std::string(both.substr(space + 1)));
  }
  if (merge.is_array() && merge.get_array().size() == 2 && merge.get_array()[0].is_string() &&
      merge.get_array()[1].is_string())
    return std::pair(std::string(merge.get_array()[0].get_string()),
                     std::string(merge.get_array()[1].get_string()));
  return std::nullopt;
}

}  // namespace

TokenId VocabularyCut::renamed(TokenId old) const {
  const auto found = std::lower_bound(kept.begin(), kept.end(), old);
  return found != kept.end() && *found == old ? static_cast<TokenId>(found - kept.begin()) : -1;
}

Result<VocabularyCut> cut_vocabulary(std::string_view tokenizer_json, std::string_view tokenizer_config,
                                     const std::set<TokenId>& used, const std::string& where) {
  json::value document = RETORT_TRY(parse_json(tokenizer_json, where));
  RETORT_TRY(as_object(document, where));
  json::object& root = document.as_object();
  RETORT_TRY(json_object(root, "model", where));
  json::object& model = root.at("model").as_object();
  const json::value* named = model.if_contains("type");
  const std::string type = named != nullptr && named->is_string() ? std::string(named->get_string())
                           : json_has(model, "merges")            ? "BPE"
                                                                  : "";
  const bool unigram = type == "Unigram", bpe = type == "BPE";
  if (!unigram && !bpe && type != "WordPiece")
    return fail(ErrorCode::kUnsupported, where, "prune.vocabulary: tokenizer model '{}' is not supported",
                type);

  std::map<TokenId, std::string> texts;
  std::unordered_map<std::string, TokenId> ids;
  const auto enter = [&](std::int64_t id, std::string text) -> Result<void> {
    if (id < 0 || id > INT32_MAX) return fail(ErrorCode::kInvalid, where, "token '{}' has id {}", text, id);
    ids.emplace(text, static_cast<TokenId>(id));
    texts.emplace(static_cast<TokenId>(id), std::move(text));
    return {};
  };
  if (unigram) {
    std::int64_t id = 0;
    for (const json::value& entry : *RETORT_TRY(json_array(model, "vocab", where))) {
      if (!entry.is_array() || entry.get_array().size() != 2 || !entry.get_array()[0].is_string() ||
          !entry.get_array()[1].is_number())
        return fail(ErrorCode::kInvalid, where, "token {} is not a pair of a text and a score", id);
      RETORT_TRY(enter(id++, std::string(entry.get_array()[0].get_string())));
    }
  } else {
    for (const auto& member : *RETORT_TRY(json_object(model, "vocab", where))) {
      if (!member.value().is_int64())
        return fail(ErrorCode::kInvalid, where, "token '{}' has no integer id",
                    std::string_view(member.key()));
      RETORT_TRY(enter(member.value().get_int64(), std::string(member.key())));
    }
  }

  const json::value* fallback = model.if_contains("byte_fallback");
  const bool bytes = fallback != nullptr && fallback->is_bool() && fallback->get_bool();
  std::set<TokenId> keep;
  std::vector<TokenId> fresh;
  const auto want = [&](TokenId id) {
    if (texts.contains(id) && keep.insert(id).second) fresh.push_back(id);
  };
  if (json_has(root, "added_tokens"))
    for (const json::value& token : *RETORT_TRY(json_array(root, "added_tokens", where))) {
      const json::object& added = *RETORT_TRY(as_object(token, where));
      const std::int64_t id = RETORT_TRY(json_int(added, "id", where));
      RETORT_TRY(enter(id, RETORT_TRY(json_string(added, "content", where))));
      want(static_cast<TokenId>(id));
    }
  for (const TokenId id : used) want(id);
  for (const auto& [id, text] : texts) {
    std::string_view plain = text;
    if (type == "WordPiece" && plain.starts_with("##")) plain.remove_prefix(2);
    if (bytes ? is_byte(text) : characters(plain) == 1) want(id);
  }
  if (const json::value* unknown = model.if_contains("unk_token"); unknown != nullptr && unknown->is_string())
    if (const auto found = ids.find(std::string(unknown->get_string())); found != ids.end())
      want(found->second);
  if (unigram) {
    const json::array& list = model.at("vocab").as_array();
    TokenId least = 0;
    const auto score = [&](TokenId id) {
      return list[static_cast<std::size_t>(id)].as_array()[1].to_number<double>();
    };
    for (TokenId id = 1; id < static_cast<TokenId>(list.size()); ++id)
      if (score(id) < score(least)) least = id;
    want(least);
    if (json_has(model, "unk_id"))
      want(static_cast<TokenId>(RETORT_TRY(json_uint(model, "unk_id", where, INT32_MAX))));
  }

  json::array merges;
  if (bpe) {
    std::unordered_map<std::string, std::vector<std::pair<TokenId, TokenId>>> makes;  // a text's merges
    const json::array& all = *RETORT_TRY(json_array(model, "merges", where));
    for (const json::value& merge : all) {
      const auto parts = parts_of(merge);
      if (!parts || !ids.contains(parts->first) || !ids.contains(parts->second))
        return fail(ErrorCode::kInvalid, where, "merge '{}' is not a pair of tokens", json::serialize(merge));
      makes[parts->first + parts->second].emplace_back(ids.at(parts->first), ids.at(parts->second));
    }
    while (!fresh.empty()) {
      const TokenId id = fresh.back();
      fresh.pop_back();
      if (const auto found = makes.find(texts.at(id)); found != makes.end())
        for (const auto& [left, right] : found->second) want(left), want(right);
    }
    for (const json::value& merge : all) {
      const auto parts = *parts_of(merge);
      const auto made = ids.find(parts.first + parts.second);
      if (made != ids.end() && keep.contains(made->second) && keep.contains(ids.at(parts.first)) &&
          keep.contains(ids.at(parts.second)))
        merges.push_back(merge);
    }
  }

  VocabularyCut out;
  out.kept.assign(keep.begin(), keep.end());
  const auto rename = [&](json::value& value) {  // an id somewhere in the file
    if (value.is_int64() || value.is_uint64())
      value = out.renamed(static_cast<TokenId>(value.to_number<std::int64_t>()));
  };
  if (unigram) {
    json::array vocab;
    const json::array& list = model.at("vocab").as_array();
    for (const TokenId id : out.kept)
      if (static_cast<std::size_t>(id) < list.size()) vocab.push_back(list[static_cast<std::size_t>(id)]);
    model["vocab"] = std::move(vocab);
    if (json_has(model, "unk_id")) rename(model["unk_id"]);
  } else {
    const json::object& list = model.at("vocab").as_object();
    json::object vocab;
    for (const TokenId id : out.kept)
      if (const std::string& text = texts.at(id); list.contains(text)) vocab[text] = out.renamed(id);
    model["vocab"] = std::move(vocab);
    if (bpe) model["merges"] = std::move(merges);
  }
  if (json_has(root, "added_tokens"))
    for (json::value& token : root.at("added_tokens").as_array()) rename(token.as_object()["id"]);
  // Post-processors: a template lists ids by name, BERT's and RoBERTa's have pairs ["[SEP]", 102].
  const std::function<void(json::value&)> processor = [&](json::value& value) {
    if (!value.is_object()) return;
    json::object& post = value.get_object();
    if (json::value* more = post.if_contains("processors"); more != nullptr && more->is_array())
      for (json::value& each : more->get_array()) processor(each);
    if (json::value* special = post.if_contains("special_tokens"); special != nullptr && special->is_object())
      for (auto& member : special->get_object())
        if (member.value().is_object())
          if (json::value* list = member.value().get_object().if_contains("ids");
              list != nullptr && list->is_array())
            for (json::value& id : list->get_array()) rename(id);
    for (const char* pair : {"sep", "cls"})
      if (json::value* entry = post.if_contains(pair);
          entry != nullptr && entry->is_array() && entry->get_array().size() == 2)
        rename(entry->get_array()[1]);
  };
  if (json::value* post = root.if_contains("post_processor")) processor(*post);
  out.tokenizer_json = json::serialize(document);

  if (!tokenizer_config.empty()) {
    json::value config = RETORT_TRY(parse_json(tokenizer_config, where + " (tokenizer_config.json)"));
    if (config.is_object())
      if (json::value* decoder = config.get_object().if_contains("added_tokens_decoder");
          decoder != nullptr && decoder->is_object()) {
        json::object renamed;
        for (const auto& member : decoder->get_object()) {
          TokenId id = -1;
          const std::string_view key = member.key();
          std::from_chars(key.data(), key.data() + key.size(), id);
          if (const TokenId now = out.renamed(id); now >= 0) renamed[std::to_string(now)] = member.value();
        }
        *decoder = std::move(renamed);
      }
    out.tokenizer_config = json::serialize(config);
  }
  return out;
}

}  // namespace retort
