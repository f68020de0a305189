#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/tokenizer/tokenizer_impl.h"
#include "common/tokenizer/unicode_text.h"

namespace retort {
namespace {

// How retort.tokenizer.added_tokens, a list of ids each followed by the sum of these, says AddedToken's
// switches.
constexpr std::int64_t kLstrip = 1, kRstrip = 2, kSingleWord = 4, kNormalized = 8;

}  // namespace

Result<Tokenizer> Tokenizer::from_gguf(const GgufFile& file) {
  const std::string& where = file.where();
  auto impl = std::make_shared<Impl>();
  Impl& t = *impl;
  const std::string model = RETORT_TRY(file.text("tokenizer.ggml.model"));
  if (model == "llama")
    t.kind = Kind::kSentencePiece;
  else if (model == "gpt2")
    t.kind = Kind::kByteLevel;
  else if (model == "t5")
    t.kind = Kind::kUnigram;
  else if (model == "bert")
    t.kind = Kind::kWordPiece;
  else
    return fail(ErrorCode::kUnsupported, where,
                "tokenizer model '{}'; 'llama', 'gpt2', 't5' and 'bert' are supported", model);
  if (t.kind == Kind::kByteLevel && file.find("tokenizer.ggml.pre") != nullptr) {
    const std::string name = RETORT_TRY(file.text("tokenizer.ggml.pre"));
    const std::optional<PreTokenizer> pre = pre_tokenizer_of(name);
    if (!pre)
      return fail(ErrorCode::kUnsupported, where, "unsupported pre-tokenizer '{}'; supported: {}", name,
                  pre_tokenizer_names());
    t.pre = *pre;
  }
  using ListKind = GgufList::Kind;
  const auto optional_list = [&](const char* key, ListKind kind) -> Result<std::optional<GgufList>> {
    if (!file.has(key)) return std::optional<GgufList>();
    return std::optional(RETORT_TRY(file.list(key, kind)));
  };
  const GgufList tokens = RETORT_TRY(file.list("tokenizer.ggml.tokens", ListKind::kTexts));
  const auto types = RETORT_TRY(optional_list("tokenizer.ggml.token_type", ListKind::kIntegers));
  const auto scores = RETORT_TRY(optional_list("tokenizer.ggml.scores", ListKind::kNumbers));
  const auto merges = RETORT_TRY(optional_list("tokenizer.ggml.merges", ListKind::kTexts));
  if ((types && types->size() != tokens.size()) || (scores && scores->size() != tokens.size()))
    return fail(ErrorCode::kInvalid, where, "the tokenizer's lists differ in length");
  t.types.reserve(tokens.size());
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const std::int64_t type = types ? types->integer(i) : 1;
    if (type < 0 || type > 6) return fail(ErrorCode::kInvalid, where, "token {} has type {}", i, type);
    t.types.push_back(static_cast<TokenType>(type == 0 ? 1 : type));
  }
  std::size_t bytes = 0;
  tokens.for_each_text([&](std::string_view token) { bytes += token.size(); });
  t.tokens.reserve(tokens.size(), bytes);
  if (t.kind != Kind::kWordPiece)  // its own are written otherwise, see below
    tokens.for_each_text([&](std::string_view token) { t.tokens.add(token); });
  const auto special = [&](const char* key, TokenId& id) -> Result<void> {
    if (file.find(key) == nullptr) return {};
    const std::uint64_t value = RETORT_TRY(file.uint(key));
    if (value >= tokens.size())
      return fail(ErrorCode::kInvalid, where, "metadata '{}' is {}, outside the vocabulary of {}", key, value,
                  tokens.size());
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
  const bool unigram = t.kind == Kind::kUnigram;
  t.add_eos = flag("tokenizer.ggml.add_eos_token", unigram);
  t.space_prefix = (pieces && flag("tokenizer.ggml.add_space_prefix", true)) ||
                   (unigram && flag("tokenizer.ggml.add_space_prefix", false));
  t.escape_spaces = (pieces || unigram) && flag("retort.tokenizer.escape_spaces", true);
  t.fuse_unknown = pieces && flag("retort.tokenizer.fuse_unknown", false);
  if (t.kind == Kind::kWordPiece) {
    RETORT_TRY(special("tokenizer.ggml.cls_token_id", t.bos));
    RETORT_TRY(special("tokenizer.ggml.seperator_token_id", t.eos));
    RETORT_TRY(special("tokenizer.ggml.mask_token_id", t.mask));
    RETORT_TRY(special("tokenizer.ggml.padding_token_id", t.padding));
    WordPiece& w = t.wordpiece;
    w.lower_case = flag("tokenizer.ggml.normalizer.lowercase", true);
    w.strip_accents = flag("tokenizer.ggml.normalizer.strip_accents", w.lower_case);
    w.clean_text = flag("retort.tokenizer.clean_text", true);
    w.chinese_characters = flag("retort.tokenizer.chinese_characters", true);
    if (file.find("retort.tokenizer.max_word_characters") != nullptr)
      w.max_word_characters = static_cast<std::uint32_t>(
          std::min<std::uint64_t>(RETORT_TRY(file.uint("retort.tokenizer.max_word_characters")), 1u << 20));
    t.add_bos = t.add_eos = true;
    // GGUF marks the pieces that begin a word; BERT's own vocabulary, and this one, those that do not.
    tokens.for_each_text([&](std::string_view token) {
      const auto id = static_cast<TokenId>(t.tokens.size());
      TokenType& type = t.types[t.tokens.size()];
      const bool named = id == t.bos || id == t.eos || id == t.unknown || id == t.mask || id == t.padding;
      if (named && type == TokenType::kNormal) type = TokenType::kControl;
      const bool piece = type == TokenType::kNormal || type == TokenType::kUnused;
      if (!piece)
        t.tokens.add(token);
      else if (token.size() > kSpace.size() && token.starts_with(kSpace))
        t.tokens.add(token.substr(kSpace.size()));
      else
        t.tokens.add(std::string(WordPiece::kContinues).append(token));
    });
  }
  if (t.kind == Kind::kByteLevel) {
    t.pre.ignore_merges = flag("retort.tokenizer.ignore_merges", t.pre.ignore_merges);
    t.pre.nfc = flag("retort.tokenizer.nfc", t.pre.nfc);
  }
  if (const auto list = RETORT_TRY(optional_list("retort.tokenizer.added_tokens", ListKind::kIntegers))) {
    for (std::size_t i = 0; i + 1 < list->size(); i += 2) {
      const std::int64_t id = list->integer(i), how = list->integer(i + 1);
      if (id < 0 || id >= static_cast<std::int64_t>(t.tokens.size()))
        return fail(ErrorCode::kInvalid, where, "added token {} is outside the vocabulary", id);
      t.added[static_cast<TokenId>(id)] = {.lstrip = (how & kLstrip) != 0,
                                           .rstrip = (how & kRstrip) != 0,
                                           .single_word = (how & kSingleWord) != 0,
                                           .normalized = (how & kNormalized) != 0};
    }
  }
  if (unigram) {
    if (!scores) return fail(ErrorCode::kInvalid, where, "metadata 'tokenizer.ggml.scores' is missing");
    for (std::size_t i = 0; i < scores->size(); ++i) {
      const double score = scores->number(i);
      if (!std::isfinite(score)) return fail(ErrorCode::kInvalid, where, "a token has no finite score");
      t.scores.push_back(static_cast<float>(score));
    }
    if (const auto map =
            RETORT_TRY(optional_list("tokenizer.ggml.precompiled_charsmap", ListKind::kIntegers))) {
      std::string text;
      for (std::size_t i = 0; i < map->size(); ++i) text += static_cast<char>(map->integer(i));
      t.charsmap = RETORT_TRY(CharsMap::parse(text, where));
    }
    t.merge_spaces = flag("tokenizer.ggml.remove_extra_whitespaces", false);
    if (t.merge_spaces && file.find("retort.tokenizer.prefix_always") == nullptr)
      t.space_prefix = true;  // as llama.cpp does
    t.prefix_always = flag("retort.tokenizer.prefix_always", true);
    t.byte_fallback = flag("retort.tokenizer.byte_fallback", false);
    t.by_grapheme = flag("retort.tokenizer.by_grapheme", false);
    t.split_all_space = flag("retort.tokenizer.split_all_space", false);
    t.strip_right = flag("retort.tokenizer.strip_right", false);
    t.split_pieces = flag("retort.tokenizer.split_pieces", false);
  } else if (t.kind == Kind::kByteLevel || (t.kind != Kind::kWordPiece && merges)) {
    if (!merges) return fail(ErrorCode::kInvalid, where, "metadata 'tokenizer.ggml.merges' is missing");
    std::optional<std::string> bad;
    std::size_t number = 0;
    std::string joined;
    t.merges.reserve(merges->size());
    merges->for_each_text([&](std::string_view both) {
      const std::size_t space = both.find(' ', 1);
      Merges::Merge merge{-1, -1, -1};
      if (space != std::string_view::npos) {
        const std::string_view left = both.substr(0, space), right = both.substr(space + 1);
        joined.assign(left).append(right);
        merge = {t.tokens.find(left), t.tokens.find(right), t.tokens.find(joined)};
      }
      if (merge.left >= 0 && merge.right >= 0 && merge.merged >= 0)
        t.merges.add(merge);
      else if (!bad)
        bad = fmt::format("merge {} '{}'", number, both);
      ++number;
    });
    if (bad) return fail(ErrorCode::kInvalid, where, "{} does not join tokens of the vocabulary", *bad);
  } else if (t.kind == Kind::kSentencePiece) {
    // Two neighbours merge when their concatenation is a token, best score first. Equal scores
    // share a rank, so that the leftmost wins, as in llama.cpp.
    if (!scores) return fail(ErrorCode::kInvalid, where, "metadata 'tokenizer.ggml.scores' is missing");
    std::vector<double> order(scores->size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = scores->number(i);
    std::sort(order.begin(), order.end(), std::greater<>());
    order.erase(std::unique(order.begin(), order.end()), order.end());
    t.piece_ranks.assign(t.tokens.size(), Impl::kNoRank);
    for (std::size_t i = 0; i < t.tokens.size(); ++i)
      if (t.types[i] == TokenType::kNormal && t.tokens[static_cast<TokenId>(i)].size() <= Impl::kLongestPiece)
        t.piece_ranks[i] = static_cast<std::uint32_t>(
            std::lower_bound(order.begin(), order.end(), scores->number(i), std::greater<>()) -
            order.begin());
  }
  RETORT_TRY(t.finish(where));
  return Tokenizer(std::move(impl));
}

void Tokenizer::write_gguf(GgufWriter& writer) const {
  const Impl& t = *impl_;
  const bool pieces = t.kind == Kind::kSentencePiece;
  const bool unigram = t.kind == Kind::kUnigram, bytes = t.kind == Kind::kByteLevel;
  const bool wordpiece = t.kind == Kind::kWordPiece;
  writer.set("tokenizer.ggml.model", std::string(pieces      ? "llama"
                                                 : unigram   ? "t5"
                                                 : wordpiece ? "bert"
                                                             : "gpt2"));
  const std::string pre(bytes ? name_of(t.pre.splitter, t.pre.ignore_merges) : "default");
  writer.set("tokenizer.ggml.pre", pre);
  std::vector<std::string> tokens;
  for (TokenId id = 0; id < static_cast<TokenId>(t.tokens.size()); ++id) {
    const std::string_view text = t.tokens[id];
    const TokenType type = t.types[static_cast<std::size_t>(id)];
    if (!wordpiece || (type != TokenType::kNormal && type != TokenType::kUnused))
      tokens.emplace_back(text);
    else if (text.starts_with(WordPiece::kContinues))
      tokens.emplace_back(text.substr(WordPiece::kContinues.size()));
    else
      tokens.push_back(std::string(kSpace).append(text));
  }
  writer.set("tokenizer.ggml.tokens", tokens);
  std::vector<std::int64_t> types;
  for (const TokenType type : t.types) types.push_back(static_cast<std::int64_t>(type));
  writer.set("tokenizer.ggml.token_type", types);
  if (!t.added.empty()) {
    std::vector<std::int64_t> added;
    for (const auto& [id, how] : t.added) {
      added.push_back(id);
      added.push_back((how.lstrip ? kLstrip : 0) | (how.rstrip ? kRstrip : 0) |
                      (how.single_word ? kSingleWord : 0) | (how.normalized ? kNormalized : 0));
    }
    writer.set("retort.tokenizer.added_tokens", added);
  }
  if (unigram) {
    writer.set("tokenizer.ggml.scores", std::vector<double>(t.scores.begin(), t.scores.end()));
    writer.set("tokenizer.ggml.add_space_prefix", t.space_prefix);
    writer.set("tokenizer.ggml.remove_extra_whitespaces", t.merge_spaces);
    if (!t.charsmap.empty()) {
      std::vector<std::int64_t> map;
      for (const char c : t.charsmap.bytes()) map.push_back(static_cast<unsigned char>(c));
      writer.set("tokenizer.ggml.precompiled_charsmap", map);
    }
    writer.set("retort.tokenizer.prefix_always", t.prefix_always);
    for (const auto& [key, value] :
         {std::pair{"byte_fallback", t.byte_fallback}, std::pair{"by_grapheme", t.by_grapheme},
          std::pair{"split_all_space", t.split_all_space}, std::pair{"strip_right", t.strip_right},
          std::pair{"split_pieces", t.split_pieces}})
      if (value) writer.set(std::string("retort.tokenizer.") + key, true);
  } else if (pieces) {
    // A merged token's score is minus the best rank that makes it; tokens that no merge makes must never win.
    std::vector<double> scores(t.tokens.size(), -1e6);
    for (std::size_t rank = 0; rank < t.merges.all().size(); ++rank) {
      double& score = scores[static_cast<std::size_t>(t.merges.all()[rank].merged)];
      score = std::max(score, -static_cast<double>(rank));
    }
    for (std::size_t i = 0; i < t.piece_ranks.size(); ++i)
      if (t.piece_ranks[i] != Impl::kNoRank) scores[i] = -static_cast<double>(t.piece_ranks[i]);
    writer.set("tokenizer.ggml.scores", scores);
    writer.set("tokenizer.ggml.add_space_prefix", t.space_prefix);
    if (!t.escape_spaces) writer.set("retort.tokenizer.escape_spaces", false);
    if (t.fuse_unknown) writer.set("retort.tokenizer.fuse_unknown", true);
  } else if (wordpiece) {
    const auto id = [&](const char* key, TokenId token) {
      if (token >= 0) writer.set(key, static_cast<std::uint64_t>(token));
    };
    id("tokenizer.ggml.cls_token_id", t.bos);
    id("tokenizer.ggml.seperator_token_id", t.eos);  // spelt so
    id("tokenizer.ggml.mask_token_id", t.mask);
    id("tokenizer.ggml.padding_token_id", t.padding);
    const WordPiece& w = t.wordpiece;
    writer.set("tokenizer.ggml.normalizer.lowercase", w.lower_case);
    writer.set("tokenizer.ggml.normalizer.strip_accents", w.strip_accents);
    if (!w.clean_text) writer.set("retort.tokenizer.clean_text", false);
    if (!w.chinese_characters) writer.set("retort.tokenizer.chinese_characters", false);
    if (w.max_word_characters != WordPiece().max_word_characters)
      writer.set("retort.tokenizer.max_word_characters", std::uint64_t{w.max_word_characters});
  } else {
    std::vector<std::string> merges;
    for (const Merges::Merge& merge : t.merges.all())
      merges.push_back(std::string(t.tokens[merge.left]) + " " + std::string(t.tokens[merge.right]));
    writer.set("tokenizer.ggml.merges", merges);
    const PreTokenizer usual = pre_tokenizer_of(pre).value_or(PreTokenizer());
    if (usual.ignore_merges != t.pre.ignore_merges)
      writer.set("retort.tokenizer.ignore_merges", t.pre.ignore_merges);
    if (usual.nfc != t.pre.nfc) writer.set("retort.tokenizer.nfc", t.pre.nfc);
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
