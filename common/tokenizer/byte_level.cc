#include "common/tokenizer/byte_level.h"

#include <algorithm>

#include "common/tokenizer/unicode_text.h"

namespace retort {

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

namespace {

using Word = std::function<void(std::string_view)>;

/// Where the run of characters from `at` on that `belongs` accepts ends, after `most` characters at most.
template <typename Class>
std::size_t end_of_run(std::string_view text, std::size_t at, Class belongs, std::size_t most = SIZE_MAX) {
  for (std::size_t n = 0; at < text.size() && n < most; ++n) {
    const auto [point, length] = code_point(text, at);
    if (!belongs(point)) break;
    at += length;
  }
  return at;
}

bool is_sign(std::int32_t c) { return !is_space(c) && !is_letter(c) && !is_number(c); }

void split_gpt2(std::string_view text, const Word& word) {
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

/// 's|'t|'re|'ve|'m|'ll|'d in any case, at an apostrophe: the length, or 0. U+017F is an s when case does not
/// matter.
std::size_t contraction(std::string_view text, std::size_t at) {
  if (text[at] != '\'') return 0;
  const std::string_view rest = text.substr(at + 1);
  const auto lower = [&](std::size_t i) {
    return i < rest.size() && rest[i] >= 'A' && rest[i] <= 'Z' ? static_cast<char>(rest[i] + 32)
           : i < rest.size()                                   ? rest[i]
                                                               : '\0';
  };
  if (const char first = lower(0); first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
  if (rest.starts_with("\xc5\xbf")) return 3;
  for (const std::string_view suffix : {"re", "ve", "ll"})
    if (lower(0) == suffix[0] && lower(1) == suffix[1]) return 3;
  return 0;
}

void split_llama3(std::string_view text, std::size_t digits, const Word& word) {
  const auto line_end = [](std::int32_t c) { return c == '\r' || c == '\n'; };
  for (std::size_t at = 0, end = 0; at < text.size(); at = end) {
    end = at + contraction(text, at);
    if (end == at) {
      const auto [first, length] = code_point(text, at);
      const std::size_t second_at = at + length;
      const std::int32_t second = second_at < text.size() ? code_point(text, second_at).first : ' ';
      if (is_letter(first) || (is_letter(second) && !line_end(first) && !is_number(first))) {
        end = end_of_run(text, second_at, is_letter);
      } else if (is_number(first)) {
        end = end_of_run(text, at, is_number, digits);
      } else if (is_sign(first) || (first == ' ' && second_at < text.size() && is_sign(second))) {
        end = end_of_run(text, end_of_run(text, second_at, is_sign), line_end);
      } else {
        // White space: up to its last line end; without one, all but the last character when a word follows.
        end = end_of_run(text, at, is_space);
        std::size_t last = at, lines = at;
        for (std::size_t i = at; i < end;) {
          const auto [point, bytes] = code_point(text, i);
          last = i;
          i += bytes;
          if (line_end(point)) lines = i;
        }
        if (lines > at)
          end = lines;
        else if (end < text.size() && last > at)
          end = last;
      }
    }
    word(text.substr(at, end - at));
  }
}

/// Runs of `isolated` characters, `most` at most, go to `match`, what lies between them to `between`.
template <typename Class>
void split_runs(std::string_view text, Class isolated, std::size_t most, const Word& match,
                const Word& between) {
  std::size_t from = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = end_of_run(text, at, isolated, most);
    if (end == at) {
      at += code_point(text, at).second;
      continue;
    }
    if (at > from) between(text.substr(from, at - from));
    match(text.substr(at, end - at));
    from = at = end;
  }
  if (from < text.size()) between(text.substr(from));
}

void split_default(std::string_view text, const Word& word) {
  const Word threes = [&](std::string_view digits) {
    std::size_t from = 0;
    for (std::size_t at = 0; at + 3 <= digits.size();) {
      if (!std::all_of(digits.begin() + static_cast<std::ptrdiff_t>(at),
                       digits.begin() + static_cast<std::ptrdiff_t>(at + 3),
                       [](char c) { return c >= '0' && c <= '9'; })) {
        ++at;
        continue;
      }
      if (at > from) word(digits.substr(from, at - from));
      word(digits.substr(at, 3));
      from = at += 3;
    }
    if (from < digits.size()) word(digits.substr(from));
  };
  const Word numbers = [&](std::string_view part) { split_runs(part, is_number, SIZE_MAX, threes, word); };
  const auto sign = [](std::int32_t c) {
    return is_punctuation(c) ||
           (c > 0 && c < 0x80 &&
            std::string_view("$+<=>^~|").find(static_cast<char>(c)) != std::string_view::npos);
  };
  const Word gpt2 = [&](std::string_view part) { split_gpt2(part, numbers); };
  split_runs(text, sign, SIZE_MAX, gpt2, gpt2);
}

struct Named {
  std::string_view name;
  PreTokenizer pre;
};
constexpr PreTokenizer kGpt2{Splitter::kGpt2, false, false}, kLlamaBpe{Splitter::kLlama3, true, false},
    kSmaug{Splitter::kLlama3, false, false}, kQwenNfc{Splitter::kQwen2, false, true},
    kQwen{Splitter::kQwen2, false, false}, kDigits{Splitter::kDigits, false, false};
// llama.cpp's names, grouped as its llama-vocab.cpp does; Qwen's tokenizer.json asks for NFC.
constexpr Named kNamed[] = {
    {"gpt-2", kGpt2},
    {"llama-bpe", kLlamaBpe},
    {"smaug-bpe", kSmaug},
    {"qwen2", kQwenNfc},
    {"smollm", kDigits},
    {"phi-2", kGpt2},
    {"mpt", kGpt2},
    {"olmo", kGpt2},
    {"jais", kGpt2},
    {"exaone4", kGpt2},
    {"llama3", kLlamaBpe},
    {"llama-v3", kLlamaBpe},
    {"falcon3", kLlamaBpe},
    {"pixtral", kLlamaBpe},
    {"lfm2", kLlamaBpe},
    {"dbrx", kSmaug},
    {"glm4", kSmaug},
    {"chatglm-bpe", kSmaug},
    {"stablelm2", kQwen},
    {"deepseek-r1-qwen", kQwenNfc},
    {"megrez", kQwen},
    {"hunyuan", kQwen},
    {"starcoder", kDigits},
    {"refact", kDigits},
    {"command-r", kDigits},
    {"codeshell", kDigits},
    {"minerva-7b", kDigits},
    {"exaone", kDigits},
    {"default", {Splitter::kDefault, false, false}},
};

}  // namespace

void split_words(Splitter splitter, std::string_view text,
                 const std::function<void(std::string_view)>& word) {
  switch (splitter) {
    case Splitter::kGpt2:
      return split_gpt2(text, word);
    case Splitter::kLlama3:
      return split_llama3(text, 3, word);
    case Splitter::kQwen2:
      return split_llama3(text, 1, word);
    case Splitter::kDigits:
      return split_runs(text, is_number, 1, word, [&](std::string_view part) { split_gpt2(part, word); });
    case Splitter::kDefault:
      return split_default(text, word);
  }
}

std::optional<PreTokenizer> pre_tokenizer_of(std::string_view name) {
  for (const Named& named : kNamed)
    if (named.name == name) return named.pre;
  return std::nullopt;
}

std::string_view name_of(Splitter splitter, bool ignore_merges) {
  for (const Named& named : kNamed)
    if (named.pre.splitter == splitter && named.pre.ignore_merges == ignore_merges) return named.name;
  for (const Named& named : kNamed)
    if (named.pre.splitter == splitter) return named.name;
  return "default";
}

std::string pre_tokenizer_names() {
  std::string out;
  for (const Named& named : kNamed) (out += out.empty() ? "" : ", ") += named.name;
  return out;
}

std::optional<Splitter> splitter_of_pattern(std::string_view pattern) {
  constexpr std::string_view kBefore = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N})";
  constexpr std::string_view kAfter = R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  constexpr std::string_view kOfGpt2 =
      R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
  if (pattern == kOfGpt2) return Splitter::kGpt2;
  if (!pattern.starts_with(kBefore) || !pattern.ends_with(kAfter)) return std::nullopt;
  const std::string_view count = pattern.substr(
      kBefore.size(), pattern.size() - std::min(pattern.size(), kBefore.size() + kAfter.size()));
  if (count.empty() && pattern.size() == kBefore.size() + kAfter.size()) return Splitter::kQwen2;
  if (count == "{1,3}") return Splitter::kLlama3;
  return std::nullopt;
}

}  // namespace retort
