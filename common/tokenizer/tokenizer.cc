#include "common/tokenizer/tokenizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <numeric>
#include <queue>

#include "common/core/file.h"
#include "common/core/json.h"
#include "common/tokenizer/vocabulary.h"

namespace retort {
namespace {

constexpr std::string_view kSpace = "\xe2\x96\x81";  // U+2581, SentencePiece's space
constexpr std::size_t kMaxVocabulary = 1 << 20;

/// GGUF's token types.
enum class TokenType : std::uint8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

enum class Kind {
  kSentencePiece,  ///< characters, merged by rank; unknown ones fall back to bytes or <unk>
  kByteLevel,      ///< GPT-2: bytes as printable characters, split into words first
};

/// The code point at `at` and its length in bytes; an invalid byte is itself, one byte long, as a negative
/// number.
std::pair<std::int32_t, std::size_t> code_point(std::string_view text, std::size_t at) {
  utf8proc_int32_t point = -1;
  const auto length =
      utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data() + at),
                       static_cast<utf8proc_ssize_t>(std::min<std::size_t>(4, text.size() - at)), &point);
  if (length <= 0) return {-1 - static_cast<unsigned char>(text[at]), 1};
  return {point, static_cast<std::size_t>(length)};
}

std::string utf8(std::int32_t point) {
  utf8proc_uint8_t bytes[4];
  const auto length = utf8proc_encode_char(point, bytes);
  return std::string(reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(length));
}

/// GPT-2's bytes_to_unicode: printable Latin-1 characters stand for themselves, the other 68 bytes for U+0100
/// and up.
const std::array<std::string, 256>& byte_characters() {
  static const std::array<std::string, 256> table = [] {
    std::array<std::string, 256> out;
    std::int32_t next = 256;
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
      out[static_cast<std::size_t>(b)] = utf8(printable ? b : next++);
    }
    return out;
  }();
  return table;
}

/// Inverse of byte_characters over a whole token; nothing when a character is not in the table.
std::optional<std::string> bytes_of(std::string_view token) {
  static const std::array<std::int16_t, 0x180> inverse = [] {
    std::array<std::int16_t, 0x180> out;
    out.fill(-1);
    for (std::size_t b = 0; b < 256; ++b)
      out[static_cast<std::size_t>(code_point(byte_characters()[b], 0).first)] = static_cast<std::int16_t>(b);
    return out;
  }();
  std::string out;
  for (std::size_t i = 0; i < token.size();) {
    const auto [point, length] = code_point(token, i);
    if (point < 0 || point >= static_cast<std::int32_t>(inverse.size()) ||
        inverse[static_cast<std::size_t>(point)] < 0)
      return std::nullopt;
    out += static_cast<char>(inverse[static_cast<std::size_t>(point)]);
    i += length;
  }
  return out;
}

bool is_letter(std::int32_t c) {
  if (c < 0) return false;
  const auto category = utf8proc_category(c);
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}
bool is_number(std::int32_t c) {
  if (c < 0) return false;
  const auto category = utf8proc_category(c);
  return category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO;
}
/// Unicode White_Space, as \s in the tokenizers' regular expressions.
bool is_space(std::int32_t c) {
  return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
         c == 0x3000;
}

/// GPT-2's pattern: 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
template <typename Word>
void split_gpt2(std::string_view text, Word word) {
  std::size_t at = 0;
  while (at < text.size()) {
    if (text[at] == '\'') {
      const std::string_view rest = text.substr(at + 1, 2);
      std::size_t length = 0;
      for (const std::string_view suffix : {"re", "ve", "ll"})
        if (rest == suffix) length = 3;
      if (length == 0 && !rest.empty() && std::string_view("stmd").find(rest[0]) != std::string_view::npos)
        length = 2;
      if (length != 0) {
        word(text.substr(at, length));
        at += length;
        continue;
      }
    }
    const auto [first, first_length] = code_point(text, at);
    std::size_t begin = at;
    if (first == ' ' && at + 1 < text.size() && !is_space(code_point(text, at + 1).first)) begin = at + 1;
    const auto [point, length] = code_point(text, begin);
    if (!is_space(point)) {
      const auto same_class = [point = point](std::int32_t c) {
        if (is_letter(point)) return is_letter(c);
        if (is_number(point)) return is_number(c);
        return !is_space(c) && !is_letter(c) && !is_number(c);
      };
      std::size_t end = begin + length;
      while (end < text.size()) {
        const auto [next, next_length] = code_point(text, end);
        if (!same_class(next)) break;
        end += next_length;
      }
      word(text.substr(at, end - at));
      at = end;
      continue;
    }
    // White space: all of it at the end of the text, otherwise all but the last character (which joins the
    // next word when it is a space, and otherwise stands alone).
    std::size_t end = at, last = at;
    while (end < text.size()) {
      const auto [next, next_length] = code_point(text, end);
      if (!is_space(next)) break;
      last = end;
      end += next_length;
    }
    if (end < text.size() && last > at) end = last;
    word(text.substr(at, end - at));
    at = end;
  }
}

}  // namespace

struct Tokenizer::Impl {
  Kind kind = Kind::kByteLevel;
  Vocabulary tokens;  ///< as the vocabulary writes them
  std::vector<TokenType> types;
  Merges merges;
  std::array<TokenId, 256> byte_tokens;
  TokenId bos = -1, eos = -1, end_of_turn = -1, unknown = -1;
  std::vector<TokenId> ends;  ///< see ends_generation()
  std::string chat_template;
  bool add_bos = false, add_eos = false, space_prefix = false, escape_spaces = false, fuse_unknown = false;
  std::vector<std::pair<std::string, TokenId>> special;  ///< control and user-defined tokens, longest first
  std::array<bool, 256> special_first{};                 ///< the bytes that one of them begins with
  bool has_user_defined = false;

  /// The bytes that a token stands for; empty for special ones.
  std::string piece(TokenId id) const;
  Result<void> finish(std::string_view where);
  void merge(std::string_view text, std::vector<TokenId> symbols, std::vector<std::uint32_t> starts,
             std::vector<TokenId>& out) const;
  void encode_plain(std::string_view text, bool at_start, std::vector<TokenId>& out) const;
};

Result<void> Tokenizer::Impl::finish(std::string_view where) {
  if (tokens.size() == 0 || tokens.size() > kMaxVocabulary)
    return fail(ErrorCode::kInvalid, std::string(where), "a vocabulary of {} tokens, outside 1…{}",
                tokens.size(), kMaxVocabulary);
  byte_tokens.fill(-1);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const auto id = static_cast<TokenId>(i);
    if (types[i] == TokenType::kByte)
      if (const std::string byte = piece(id); !byte.empty())
        byte_tokens[static_cast<unsigned char>(byte[0])] = id;
    if (types[i] == TokenType::kControl || types[i] == TokenType::kUserDefined)
      if (!tokens[id].empty()) {
        special.emplace_back(tokens[id], id);
        special_first[static_cast<unsigned char>(tokens[id][0])] = true;
        has_user_defined = has_user_defined || types[i] == TokenType::kUserDefined;
      }
  }
  if (kind == Kind::kByteLevel)
    for (std::size_t b = 0; b < 256; ++b)
      if (const TokenId id = tokens.find(byte_characters()[b]); id >= 0) byte_tokens[b] = id;
  std::stable_sort(special.begin(), special.end(),
                   [](const auto& a, const auto& b) { return a.first.size() > b.first.size(); });
  for (const TokenId id : {eos, end_of_turn})
    if (id >= 0) ends.push_back(id);
  for (const std::string_view text : {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>",
                                      "<|endoftext|>", "<|end_of_text|>", "</s>"})
    if (const TokenId id = tokens.find(text);
        id >= 0 && types[static_cast<std::size_t>(id)] == TokenType::kControl)
      ends.push_back(id);
  for (const TokenId id : {bos, eos, end_of_turn, unknown})
    if (id < -1 || id >= static_cast<TokenId>(tokens.size()))
      return fail(ErrorCode::kInvalid, std::string(where),
                  "a special token's id {} is outside the vocabulary of {}", id, tokens.size());
  return {};
}

std::string Tokenizer::Impl::piece(TokenId id) const {
  const std::string_view token = tokens[id];
  switch (types[static_cast<std::size_t>(id)]) {
    case TokenType::kByte: {
      unsigned value = 256;
      const bool byte = token.size() == 6 && std::sscanf(std::string(token).c_str(), "<0x%2X>", &value) == 1;
      return byte && value < 256 ? std::string(1, static_cast<char>(value)) : std::string();
    }
    case TokenType::kUserDefined:
      if (kind == Kind::kByteLevel) return std::string(token);
      [[fallthrough]];
    case TokenType::kNormal: {
      if (kind == Kind::kByteLevel) return bytes_of(token).value_or(std::string(token));
      std::string out(token);
      if (escape_spaces)
        for (std::size_t at = 0; (at = out.find(kSpace, at)) != std::string::npos; ++at)
          out.replace(at, kSpace.size(), " ");
      return out;
    }
    default:
      return {};
  }
}

/// Byte-pair merging, [Sennrich 2016] §3.2, with a heap of candidate pairs instead of repeated scans: O(n log
/// n). `symbols`: one id per character (-1: not in the vocabulary), `starts`: where each begins in `text`.
void Tokenizer::Impl::merge(std::string_view text, std::vector<TokenId> symbols,
                            std::vector<std::uint32_t> starts, std::vector<TokenId>& out) const {
  const auto n = static_cast<std::uint32_t>(symbols.size());
  starts.push_back(static_cast<std::uint32_t>(text.size()));
  constexpr std::uint32_t kEnd = std::numeric_limits<std::uint32_t>::max();
  std::vector<std::uint32_t> next(n), previous(n);
  std::vector<bool> alive(n, true);
  for (std::uint32_t i = 0; i < n; ++i) {
    next[i] = i + 1 < n ? i + 1 : kEnd;
    previous[i] = i > 0 ? i - 1 : kEnd;
  }
  struct Candidate {
    std::uint32_t rank, left;
    TokenId left_id, right_id, merged;
    bool operator<(const Candidate& other) const {
      return std::tie(rank, left) > std::tie(other.rank, other.left);
    }
  };
  std::priority_queue<Candidate> heap;
  const auto offer = [&](std::uint32_t left) {
    if (left == kEnd || next[left] == kEnd) return;
    const TokenId a = symbols[left], b = symbols[next[left]];
    if (a < 0 || b < 0) return;
    if (const Merges::Merge* found = merges.find(a, b)) heap.push({found->rank, left, a, b, found->merged});
  };
  for (std::uint32_t i = 0; i + 1 < n; ++i) offer(i);
  while (!heap.empty()) {
    const Candidate best = heap.top();
    heap.pop();
    const std::uint32_t left = best.left;
    if (!alive[left] || symbols[left] != best.left_id || next[left] == kEnd ||
        symbols[next[left]] != best.right_id)
      continue;
    const std::uint32_t right = next[left];
    symbols[left] = best.merged;
    alive[right] = false;
    next[left] = next[right];
    if (next[left] != kEnd) previous[next[left]] = left;
    offer(previous[left]);
    offer(left);
  }
  bool last_unknown = false;
  for (std::uint32_t i = 0; i != kEnd && n > 0; i = next[i]) {
    if (symbols[i] >= 0) {
      out.push_back(symbols[i]);
      last_unknown = false;
      continue;
    }
    const std::uint32_t end = next[i] == kEnd ? static_cast<std::uint32_t>(text.size()) : starts[next[i]];
    const std::string_view bytes = text.substr(starts[i], end - starts[i]);
    const bool fallback = std::all_of(
        bytes.begin(), bytes.end(), [&](char c) { return byte_tokens[static_cast<unsigned char>(c)] >= 0; });
    if (fallback) {
      for (const char c : bytes) out.push_back(byte_tokens[static_cast<unsigned char>(c)]);
      last_unknown = false;
    } else if (unknown >= 0 && !(fuse_unknown && last_unknown)) {
      out.push_back(unknown);
      last_unknown = true;
    }
  }
}

void Tokenizer::Impl::encode_plain(std::string_view text, bool at_start, std::vector<TokenId>& out) const {
  if (text.empty()) return;
  std::vector<TokenId> symbols;
  std::vector<std::uint32_t> starts;
  if (kind == Kind::kByteLevel) {
    split_gpt2(text, [&](std::string_view word) {
      symbols.clear();
      starts.clear();
      for (std::size_t i = 0; i < word.size(); ++i) {
        symbols.push_back(byte_tokens[static_cast<unsigned char>(word[i])]);
        starts.push_back(static_cast<std::uint32_t>(i));
      }
      merge(word, symbols, starts, out);
    });
    return;
  }
  std::string normal = at_start && space_prefix ? std::string(escape_spaces ? kSpace : " ") : std::string();
  for (const char c : text)
    if (c == ' ' && escape_spaces)
      normal += kSpace;
    else
      normal += c;
  for (std::size_t i = 0; i < normal.size();) {
    const auto [point, length] = code_point(normal, i);
    const TokenId found = point < 0 ? -1 : tokens.find(std::string_view(normal).substr(i, length));
    const bool usable = found >= 0 && types[static_cast<std::size_t>(found)] == TokenType::kNormal;
    symbols.push_back(usable ? found : -1);
    starts.push_back(static_cast<std::uint32_t>(i));
    i += length;
  }
  merge(normal, std::move(symbols), std::move(starts), out);
}

Tokenizer::Tokenizer(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::Tokenizer(const Tokenizer&) = default;
Tokenizer& Tokenizer::operator=(const Tokenizer&) = default;
Tokenizer::~Tokenizer() = default;

std::vector<TokenId> Tokenizer::encode(std::string_view text, bool add_special, bool parse_special) const {
  std::vector<TokenId> out;
  if (add_special && impl_->add_bos && impl_->bos >= 0) out.push_back(impl_->bos);
  std::size_t from = 0;
  // Added tokens that are not special are found in any text, as Hugging Face and llama.cpp do.
  if (impl_->has_user_defined || (parse_special && !impl_->special.empty())) {
    for (std::size_t at = 0; at < text.size();) {
      const std::pair<std::string, TokenId>* hit = nullptr;
      if (impl_->special_first[static_cast<unsigned char>(text[at])])
        for (const auto& candidate : impl_->special)
          if ((parse_special || !is_special(candidate.second)) &&
              text.compare(at, candidate.first.size(), candidate.first) == 0) {
            hit = &candidate;
            break;
          }
      if (hit == nullptr) {
        ++at;
        continue;
      }
      impl_->encode_plain(text.substr(from, at - from), from == 0, out);
      out.push_back(hit->second);
      from = at = at + hit->first.size();
    }
  }
  impl_->encode_plain(text.substr(from), from == 0, out);
  if (add_special && impl_->add_eos && impl_->eos >= 0) out.push_back(impl_->eos);
  return out;
}

std::string Tokenizer::piece(TokenId id) const {
  if (id < 0 || id >= static_cast<TokenId>(impl_->tokens.size())) return {};
  return impl_->piece(id);
}

std::string Tokenizer::decode(std::span<const TokenId> ids) const {
  std::string out;
  for (const TokenId id : ids) out += piece(id);
  if (impl_->kind == Kind::kSentencePiece && impl_->space_prefix && out.starts_with(' ')) out.erase(0, 1);
  return out;
}

std::uint32_t Tokenizer::vocabulary_size() const { return impl_->tokens.size(); }
TokenId Tokenizer::bos() const { return impl_->bos; }
TokenId Tokenizer::eos() const { return impl_->eos; }
bool Tokenizer::ends_generation(TokenId id) const {
  return std::find(impl_->ends.begin(), impl_->ends.end(), id) != impl_->ends.end();
}
std::string_view Tokenizer::text(TokenId id) const {
  return id < 0 || id >= static_cast<TokenId>(impl_->tokens.size()) ? std::string_view() : impl_->tokens[id];
}
const std::string& Tokenizer::chat_template() const { return impl_->chat_template; }
bool Tokenizer::is_special(TokenId id) const {
  if (id < 0 || id >= static_cast<TokenId>(impl_->types.size())) return false;
  const TokenType type = impl_->types[static_cast<std::size_t>(id)];
  return type == TokenType::kControl || type == TokenType::kUnknown;
}

// tokenizer.json
// -----------------------------------------------------------------------------------------------------

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

// GGUF
// ----------------------------------------------------------------------------------------------------------------

Result<Tokenizer> Tokenizer::from_gguf(const GgufFile& file) {
  const std::string& where = file.where();
  auto impl = std::make_shared<Impl>();
  Impl& t = *impl;
  const std::string model = RETORT_TRY(file.text("tokenizer.ggml.model"));
  if (model == "llama")
    t.kind = Kind::kSentencePiece;
  else if (model == "gpt2")
    t.kind = Kind::kByteLevel;
  else
    return fail(ErrorCode::kUnsupported, where, "tokenizer model '{}'; 'llama' and 'gpt2' are supported",
                model);
  if (t.kind == Kind::kByteLevel && file.find("tokenizer.ggml.pre") != nullptr) {
    const std::string pre = RETORT_TRY(file.text("tokenizer.ggml.pre"));
    if (pre != "gpt-2")
      return fail(ErrorCode::kUnsupported, where, "pre-tokenizer '{}'; 'gpt-2' is supported", pre);
  }
  const auto array = [&]<typename T>(const char* key, std::type_identity<T>,
                                     bool required) -> Result<const std::vector<T>*> {
    const GgufValue* value = file.find(key);
    if (value == nullptr && !required) return static_cast<const std::vector<T>*>(nullptr);
    if (value != nullptr)
      if (const auto* list = std::get_if<std::vector<T>>(value)) return list;
    return fail(ErrorCode::kInvalid, where, "metadata '{}' is {}", key,
                value == nullptr ? "missing" : "of another type");
  };
  const auto& tokens = *RETORT_TRY(array("tokenizer.ggml.tokens", std::type_identity<std::string>(), true));
  const auto* types =
      RETORT_TRY(array("tokenizer.ggml.token_type", std::type_identity<std::int64_t>(), false));
  const auto* scores = RETORT_TRY(array("tokenizer.ggml.scores", std::type_identity<double>(), false));
  const auto* merges = RETORT_TRY(array("tokenizer.ggml.merges", std::type_identity<std::string>(), false));
  if ((types != nullptr && types->size() != tokens.size()) ||
      (scores != nullptr && scores->size() != tokens.size()))
    return fail(ErrorCode::kInvalid, where, "the tokenizer's lists differ in length");
  t.types.reserve(tokens.size());
  t.tokens.reserve(tokens.size(),
                   std::transform_reduce(tokens.begin(), tokens.end(), std::size_t{0}, std::plus<>(),
                                         [](const std::string& token) { return token.size(); }));
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const std::int64_t type = types == nullptr ? 1 : (*types)[i];
    if (type < 0 || type > 6) return fail(ErrorCode::kInvalid, where, "token {} has type {}", i, type);
    t.types.push_back(static_cast<TokenType>(type == 0 ? 1 : type));
    t.tokens.add(tokens[i]);
  }
  const auto special = [&](const char* key, TokenId& id) -> Result<void> {
    if (file.find(key) == nullptr) return {};
    const std::uint64_t value = RETORT_TRY(file.uint(key));
    if (value >= t.tokens.size())
      return fail(ErrorCode::kInvalid, where, "metadata '{}' is {}, outside the vocabulary of {}", key, value,
                  t.tokens.size());
    id = static_cast<TokenId>(value);
    return {};
  };
  RETORT_TRY(special("tokenizer.ggml.bos_token_id", t.bos));
  RETORT_TRY(special("tokenizer.ggml.eos_token_id", t.eos));
  RETORT_TRY(special("tokenizer.ggml.eot_token_id", t.end_of_turn));
  RETORT_TRY(special("tokenizer.ggml.unknown_token_id", t.unknown));
  if (file.find("tokenizer.chat_template") != nullptr)
    t.chat_template = RETORT_TRY(file.text("tokenizer.chat_template"));
  const auto flag = [&](const char* key, bool fallback) {
    const GgufValue* value = file.find(key);
    const bool* set = value == nullptr ? nullptr : std::get_if<bool>(value);
    return set == nullptr ? fallback : *set;
  };
  const bool pieces = t.kind == Kind::kSentencePiece;
  t.add_bos = flag("tokenizer.ggml.add_bos_token", pieces);
  t.add_eos = flag("tokenizer.ggml.add_eos_token", false);
  t.space_prefix = pieces && flag("tokenizer.ggml.add_space_prefix", true);
  t.escape_spaces = pieces && flag("retort.tokenizer.escape_spaces", true);
  t.fuse_unknown = pieces && flag("retort.tokenizer.fuse_unknown", false);
  if (t.kind == Kind::kByteLevel || merges != nullptr) {
    if (merges == nullptr)
      return fail(ErrorCode::kInvalid, where, "metadata 'tokenizer.ggml.merges' is missing");
    std::uint32_t rank = 0;
    std::string joined;
    t.merges.reserve(merges->size());
    for (const std::string_view both : *merges) {
      const std::size_t space = both.find(' ', 1);
      Merges::Merge merge{-1, -1, -1, rank};
      if (space != std::string_view::npos) {
        const std::string_view left = both.substr(0, space), right = both.substr(space + 1);
        joined.assign(left).append(right);
        merge = {t.tokens.find(left), t.tokens.find(right), t.tokens.find(joined), rank};
      }
      if (merge.left < 0 || merge.right < 0 || merge.merged < 0)
        return fail(ErrorCode::kInvalid, where, "merge {} '{}' does not join tokens of the vocabulary", rank,
                    both);
      t.merges.add(merge);
      ++rank;
    }
  } else {
    // SentencePiece: two neighbours merge when their concatenation is a token, best score first. Equal scores
    // share a rank, so that the leftmost wins, as in llama.cpp.
    if (scores == nullptr)
      return fail(ErrorCode::kInvalid, where, "metadata 'tokenizer.ggml.scores' is missing");
    std::vector<double> order(*scores);
    std::sort(order.begin(), order.end(), std::greater<>());
    order.erase(std::unique(order.begin(), order.end()), order.end());
    for (std::size_t i = 0; i < t.tokens.size(); ++i) {
      const std::string_view token = t.tokens[static_cast<TokenId>(i)];
      if (t.types[i] != TokenType::kNormal || token.size() > 1024) continue;
      const auto rank = static_cast<std::uint32_t>(
          std::lower_bound(order.begin(), order.end(), (*scores)[i], std::greater<>()) - order.begin());
      for (std::size_t cut = code_point(token, 0).second; cut < token.size();
           cut += code_point(token, cut).second) {
        const TokenId a = t.tokens.find(token.substr(0, cut)), b = t.tokens.find(token.substr(cut));
        if (a < 0 || b < 0 || t.types[static_cast<std::size_t>(a)] != TokenType::kNormal ||
            t.types[static_cast<std::size_t>(b)] != TokenType::kNormal)
          continue;
        t.merges.add({a, b, static_cast<TokenId>(i), rank});
      }
    }
  }
  RETORT_TRY(t.finish(where));
  return Tokenizer(std::move(impl));
}

void Tokenizer::write_gguf(GgufWriter& writer) const {
  const Impl& t = *impl_;
  const bool pieces = t.kind == Kind::kSentencePiece;
  writer.set("tokenizer.ggml.model", std::string(pieces ? "llama" : "gpt2"));
  writer.set("tokenizer.ggml.pre", std::string(pieces ? "default" : "gpt-2"));
  std::vector<std::string> tokens;
  for (TokenId id = 0; id < static_cast<TokenId>(t.tokens.size()); ++id) tokens.emplace_back(t.tokens[id]);
  writer.set("tokenizer.ggml.tokens", tokens);
  std::vector<std::int64_t> types;
  for (const TokenType type : t.types) types.push_back(static_cast<std::int64_t>(type));
  writer.set("tokenizer.ggml.token_type", types);
  if (pieces) {
    // A merged token's score is minus the best rank that makes it; tokens that no merge makes must never win.
    std::vector<double> scores(t.tokens.size(), -1e6);
    for (const Merges::Merge& merge : t.merges.all()) {
      double& score = scores[static_cast<std::size_t>(merge.merged)];
      score = std::max(score, -static_cast<double>(merge.rank));
    }
    writer.set("tokenizer.ggml.scores", scores);
    writer.set("tokenizer.ggml.add_space_prefix", t.space_prefix);
    if (!t.escape_spaces) writer.set("retort.tokenizer.escape_spaces", false);
    if (t.fuse_unknown) writer.set("retort.tokenizer.fuse_unknown", true);
  } else {
    std::vector<std::string> merges;
    for (const Merges::Merge& merge : t.merges.all())
      merges.push_back(std::string(t.tokens[merge.left]) + " " + std::string(t.tokens[merge.right]));
    writer.set("tokenizer.ggml.merges", merges);
  }
  if (t.bos >= 0) writer.set("tokenizer.ggml.bos_token_id", static_cast<std::uint64_t>(t.bos));
  if (t.eos >= 0) writer.set("tokenizer.ggml.eos_token_id", static_cast<std::uint64_t>(t.eos));
  if (t.end_of_turn >= 0)
    writer.set("tokenizer.ggml.eot_token_id", static_cast<std::uint64_t>(t.end_of_turn));
  if (!t.chat_template.empty()) writer.set("tokenizer.chat_template", t.chat_template);
  if (t.unknown >= 0) writer.set("tokenizer.ggml.unknown_token_id", static_cast<std::uint64_t>(t.unknown));
  writer.set("tokenizer.ggml.add_bos_token", t.add_bos);
  writer.set("tokenizer.ggml.add_eos_token", t.add_eos);
}

}  // namespace retort
