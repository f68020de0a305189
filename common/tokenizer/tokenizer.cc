#include "common/tokenizer/tokenizer.h"

#include <algorithm>

#include "common/tokenizer/byte_level.h"
#include "common/tokenizer/tokenizer_impl.h"
#include "common/tokenizer/unicode_text.h"

namespace retort {

Result<void> Tokenizer::Impl::finish(std::string_view where) {
  if (tokens.size() == 0 || tokens.size() > kMaxVocabulary)
    return fail(ErrorCode::kInvalid, std::string(where), "a vocabulary of {} tokens, outside 1…{}",
                tokens.size(), kMaxVocabulary);
  byte_tokens.fill(-1);
  std::vector<Unigram::Piece> pieces;
  float least_score = 0;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const auto id = static_cast<TokenId>(i);
    const TokenType type = types[i];
    if (type == TokenType::kByte)
      if (const std::string byte = piece(id); !byte.empty())
        byte_tokens[static_cast<unsigned char>(byte[0])] = id;
    if ((type == TokenType::kControl || type == TokenType::kUserDefined || type == TokenType::kUnknown) &&
        !tokens[id].empty()) {
      const auto known = added.find(id);
      AddedToken token = known == added.end() ? AddedToken{} : known->second;
      token.content = tokens[id];
      token.id = id;
      token.special = type != TokenType::kUserDefined;
      if (token.normalized) token.content = normalize(token.content);
      (token.normalized ? normalized_added : raw_added).add(std::move(token));
    }
    if (kind != Kind::kUnigram) continue;
    if (type == TokenType::kNormal) least_score = std::min(least_score, scores[i]);
    if (type == TokenType::kNormal) pieces.push_back({id, scores[i]});
  }
  if (kind == Kind::kUnigram) unigram = Unigram(tokens, std::move(pieces), least_score);
  if (kind == Kind::kWordPiece)
    for (TokenId id = 0; id < static_cast<TokenId>(tokens.size()); ++id)
      wordpiece.longest_bytes =
          std::max(wordpiece.longest_bytes, static_cast<std::uint32_t>(tokens[id].size()));
  if (kind == Kind::kByteLevel)
    for (std::size_t b = 0; b < 256; ++b)
      if (const TokenId id = tokens.find(byte_characters()[b]); id >= 0) byte_tokens[b] = id;
  for (const TokenId id : {eos, end_of_turn})
    if (id >= 0) ends.push_back(id);
  for (const std::string_view text : {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>",
                                      "<|endoftext|>", "<|end_of_text|>", "</s>"})
    if (const TokenId id = tokens.find(text);
        id >= 0 && types[static_cast<std::size_t>(id)] == TokenType::kControl)
      ends.push_back(id);
  for (const TokenId id : {bos, eos, end_of_turn, unknown, mask, padding})
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
      if (kind == Kind::kWordPiece)
        return token.starts_with(WordPiece::kContinues)
                   ? std::string(token.substr(WordPiece::kContinues.size()))
                   : " " + std::string(token);
      if (!escape_spaces) return std::string(token);
      std::string out;
      for (std::size_t at = 0; at < token.size();) {
        const bool space = token.substr(at).starts_with(kSpace);
        out += space ? ' ' : token[at];
        at += space ? kSpace.size() : 1;
      }
      return out;
    }
    default:
      return {};
  }
}

std::string Tokenizer::Impl::normalize(std::string_view text) const {
  if (kind == Kind::kByteLevel && pre.nfc) return normalize_nfc(text);
  if (kind == Kind::kUnigram) return charsmap.normalize(text, by_grapheme);
  return std::string(text);
}

void Tokenizer::Impl::encode_plain(std::string_view text, bool at_start, std::vector<TokenId>& out) const {
  switch (kind) {
    case Kind::kByteLevel:
      return encode_bytes(text, out);
    case Kind::kSentencePiece:
      return encode_pieces(text, at_start, out);
    case Kind::kUnigram:
      return encode_unigram(text, at_start, out);
    case Kind::kWordPiece:
      return wordpiece.encode(text, tokens, unknown, out);
  }
}

void Tokenizer::Impl::encode_bytes(std::string_view text, std::vector<TokenId>& out) const {
  std::vector<TokenId> symbols;
  std::vector<std::uint32_t> starts;
  std::string written;
  split_words(pre.splitter, text, [&](std::string_view word) {
    if (pre.ignore_merges) {
      written.clear();
      for (const char c : word) written += byte_characters()[static_cast<unsigned char>(c)];
      const TokenId whole = tokens.find(written);
      if (whole >= 0 && types[static_cast<std::size_t>(whole)] == TokenType::kNormal) {
        out.push_back(whole);
        return;
      }
    }
    symbols.clear();
    starts.clear();
    for (std::size_t i = 0; i < word.size(); ++i) {
      symbols.push_back(byte_tokens[static_cast<unsigned char>(word[i])]);
      starts.push_back(static_cast<std::uint32_t>(i));
    }
    merge(word, symbols, starts, out);
  });
}

void Tokenizer::Impl::encode_pieces(std::string_view text, bool at_start, std::vector<TokenId>& out) const {
  std::vector<TokenId> symbols;
  std::vector<std::uint32_t> starts;
  std::string normal;
  if (at_start && space_prefix) normal += escape_spaces ? kSpace : " ";
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
  const auto token = [&](TokenId id) { out.push_back(id); };
  impl_->raw_added.split(
      text, parse_special,
      [&](std::string_view raw, std::size_t raw_at) {
        const std::string normal = impl_->normalize(raw);
        impl_->normalized_added.split(
            normal, parse_special,
            [&](std::string_view plain, std::size_t at) {
              impl_->encode_plain(plain, raw_at == 0 && at == 0, out);
            },
            token);
      },
      token);
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
  const bool space =
      impl_->kind == Kind::kWordPiece || (impl_->kind != Kind::kByteLevel && impl_->space_prefix);
  if (space && out.starts_with(' ')) out.erase(0, 1);
  return out;
}

Tokenizer Tokenizer::padded(std::uint32_t size) const {
  if (size <= vocabulary_size() || size > kMaxVocabulary) return *this;
  auto impl = std::make_shared<Impl>(*impl_);
  while (impl->tokens.size() < size) {
    impl->tokens.add("[PAD" + std::to_string(impl->tokens.size()) + "]");
    impl->types.push_back(TokenType::kUnused);
    if (impl->kind == Kind::kUnigram) impl->scores.push_back(0);
  }
  return Tokenizer(std::move(impl));
}

std::uint32_t Tokenizer::vocabulary_size() const { return impl_->tokens.size(); }
TokenId Tokenizer::bos() const { return impl_->bos; }
TokenId Tokenizer::eos() const { return impl_->eos; }
TokenId Tokenizer::mask() const { return impl_->mask; }
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

}  // namespace retort
