#include <algorithm>
#include <utility>
#include <vector>

#include "agent/serve/grammar/json_schema.h"

namespace retort::grammar {
namespace {

constexpr std::size_t kMaxNodes = 4000;  // of one pattern
constexpr std::uint32_t kMaxRepeat = 256, kUnbounded = UINT32_MAX;

using Ranges = std::vector<std::pair<std::uint32_t, std::uint32_t>>;

/// In order, without overlaps.
Ranges tidy(Ranges ranges) {
  std::sort(ranges.begin(), ranges.end());
  Ranges out;
  for (const auto& [low, high] : ranges)
    if (!out.empty() && low <= out.back().second + 1)
      out.back().second = std::max(out.back().second, high);
    else
      out.emplace_back(low, high);
  return out;
}

Ranges complement(const Ranges& ranges) {
  Ranges out;
  std::uint32_t next = 0;
  for (const auto& [low, high] : tidy(ranges)) {
    if (low > next) out.emplace_back(next, low - 1);
    next = high + 1;
  }
  if (next <= 0x10ffff) out.emplace_back(next, 0x10ffff);
  return out;
}

const Ranges kDigits{{'0', '9'}}, kWord{{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}},
    kSpaces{{9, 13},          {' ', ' '},       {0xa0, 0xa0},     {0x1680, 0x1680}, {0x2000, 0x200a},
            {0x2028, 0x2029}, {0x202f, 0x202f}, {0x205f, 0x205f}, {0x3000, 0x3000}, {0xfeff, 0xfeff}},
    kLineEnds{{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}};

std::string utf8_of(std::uint32_t c) {
  std::string out;
  if (c < 0x80) return std::string(1, static_cast<char>(c));
  const auto tail = [&](int shift) { out += static_cast<char>(0x80 | (c >> shift & 0x3f)); };
  if (c < 0x800) {
    out += static_cast<char>(0xc0 | c >> 6);
  } else if (c < 0x10000) {
    out += static_cast<char>(0xe0 | c >> 12);
    tail(6);
  } else {
    out += static_cast<char>(0xf0 | c >> 18);
    tail(12);
    tail(6);
  }
  tail(0);
  return out;
}

/// A recursive-descent parser that builds as it goes [Thompson 1968]; what is repeated is read again for each
/// copy. `dry`: only to find where something ends.
class PatternParser {
 public:
  PatternParser(Network& network, std::string_view text, bool ascii)
      : network_(network), text_(text), ascii_(ascii), limit_(network.size() + kMaxNodes) {}

  Result<void> whole(NodeId from, NodeId to) {
    do {  // each alternative has anchors of its own
      NodeId at = node();
      skip(from, at);
      if (peek() == '^')
        ++at_;
      else
        at = RETORT_TRY(anything(at));
      at = RETORT_TRY(sequence(at, true));
      if (peek() == '$')
        ++at_;
      else
        at = RETORT_TRY(anything(at));
      skip(at, to);
    } while (take('|'));
    if (at_ < text_.size()) return refuse("an unbalanced ')' or an anchor inside");
    return {};
  }

 private:
  tl::unexpected<Error> refuse(std::string_view what) const {
    return fail(ErrorCode::kUnsupported, "", "{} at {} of the pattern is not supported", what, at_);
  }
  int peek(std::size_t ahead = 0) const {
    return at_ + ahead < text_.size() ? static_cast<unsigned char>(text_[at_ + ahead]) : -1;
  }
  bool take(char c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }
  NodeId node() { return dry_ != 0 ? 0 : network_.node(); }
  void skip(NodeId from, NodeId to) {
    if (dry_ == 0) network_.skip(from, to);
  }

  Result<NodeId> anything(NodeId from) {
    const NodeId loop = node();
    skip(from, loop);
    RETORT_TRY(emit(loop, loop, {{0, 0x10ffff}}));
    return loop;
  }

  Result<NodeId> alternatives(NodeId from) {
    if (++depth_ > 32) return refuse("nesting deeper than 32");
    const NodeId out = node();
    do skip(RETORT_TRY(sequence(from, false)), out);
    while (take('|'));
    --depth_;
    return out;
  }

  Result<NodeId> sequence(NodeId at, bool top) {
    while (peek() >= 0 && peek() != '|' && peek() != ')') {
      if (peek() == '$') {
        if (top && (peek(1) < 0 || peek(1) == '|')) break;
        return refuse("'$' inside");
      }
      at = RETORT_TRY(repeated(at));
    }
    return at;
  }

  Result<NodeId> repeated(NodeId at) {
    if (dry_ == 0 && network_.size() > limit_)
      return fail(ErrorCode::kUnsupported, "", "the pattern is too large");
    const std::size_t begin = at_;
    ++dry_;
    const Result<NodeId> ended = atom(0);
    --dry_;
    RETORT_TRY(ended);
    std::uint32_t least = 1, most = 1;
    if (take('*')) {
      least = 0, most = kUnbounded;
    } else if (take('+')) {
      most = kUnbounded;
    } else if (take('?')) {
      least = 0;
    } else if (peek() == '{') {
      ++at_;
      least = RETORT_TRY(count());
      most = least;
      if (take(',')) most = peek() == '}' ? kUnbounded : RETORT_TRY(count());
      if (!take('}') || most < least) return refuse("this repetition");
    }
    if (least != 1 || most != 1) {
      take('?');  // lazy: the same texts
      if (peek() == '+' || peek() == '*' || peek() == '?' || peek() == '{')
        return refuse("a repetition of one");
    }
    const std::size_t end = at_;
    if (dry_ != 0) return at;
    for (std::uint32_t i = 0; i < least; ++i) at = RETORT_TRY(again(begin, at));
    if (most == kUnbounded) {
      const NodeId loop = node();
      skip(at, loop);
      skip(RETORT_TRY(again(begin, loop)), loop);
      at = loop;
    } else if (most > least) {
      const NodeId out = node();
      for (std::uint32_t i = least; i < most; ++i) {
        skip(at, out);
        at = RETORT_TRY(again(begin, at));
      }
      skip(at, out);
      at = out;
    }
    at_ = end;
    return at;
  }
  Result<NodeId> again(std::size_t begin, NodeId at) {
    if (network_.size() > limit_) return fail(ErrorCode::kUnsupported, "", "the pattern is too large");
    at_ = begin;
    return atom(at);
  }
  Result<std::uint32_t> count() {
    std::uint32_t out = 0;
    const std::size_t begin = at_;
    for (; peek() >= '0' && peek() <= '9'; ++at_) {
      out = 10 * out + static_cast<std::uint32_t>(peek() - '0');
      if (out > kMaxRepeat) return refuse("a repetition above 256");
    }
    if (at_ == begin) return refuse("this repetition");
    return out;
  }

  /// A copy of what stands here, from a fresh node.
  Result<NodeId> atom(NodeId from) {
    if (take('(')) {
      if (take('?') && !take(':')) return refuse("a group that looks around or has a name");
      const NodeId begin = node();
      skip(from, begin);
      const NodeId to = RETORT_TRY(alternatives(begin));
      if (!take(')')) return refuse("an unbalanced '('");
      return to;
    }
    Ranges ranges;
    if (take('[')) {
      ranges = RETORT_TRY(character_class());
    } else if (take('.')) {
      ranges = complement(kLineEnds);
    } else if (take('\\')) {
      ranges = RETORT_TRY(escape(false));
    } else if (peek() == '^' || peek() == '*' || peek() == '+' || peek() == '?' || peek() == '{' ||
               peek() < 0) {
      return refuse(peek() == '^' ? "'^' inside" : "nothing to repeat");
    } else {
      const std::uint32_t c = RETORT_TRY(character());
      ranges = {{c, c}};
    }
    const NodeId to = node();
    RETORT_TRY(emit(from, to, ranges));
    return to;
  }

  /// One UTF-8 character of the pattern itself, which is valid.
  Result<std::uint32_t> character() {
    const int first = peek();
    if (first < 0) return refuse("an unfinished class");
    const int length = first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    std::uint32_t c = static_cast<std::uint32_t>(length == 1 ? first : first & (0xff >> (length + 1)));
    for (int i = 1; i < length; ++i) {
      if (peek(static_cast<std::size_t>(i)) < 0) return refuse("an unfinished character");
      c = c << 6 | static_cast<std::uint32_t>(peek(static_cast<std::size_t>(i)) & 0x3f);
    }
    at_ += static_cast<std::size_t>(length);
    if (c > 0x10ffff) return refuse("an unfinished character");
    return c;
  }

  Result<Ranges> escape(bool in_class) {
    const int c = peek();
    ++at_;
    const auto hex = [&](int digits) -> Result<Ranges> {
      std::uint32_t value = 0;
      for (int i = 0; i < digits; ++i, ++at_) {
        const int d = peek();
        const int digit = d >= '0' && d <= '9'   ? d - '0'
                          : d >= 'a' && d <= 'f' ? d - 'a' + 10
                          : d >= 'A' && d <= 'F' ? d - 'A' + 10
                                                 : -1;
        if (digit < 0) return refuse("this escape");
        value = value << 4 | static_cast<std::uint32_t>(digit);
      }
      return Ranges{{value, value}};
    };
    const auto single = [](char x) {
      return Ranges{{static_cast<std::uint32_t>(x), static_cast<std::uint32_t>(x)}};
    };
    switch (c) {
      case 'd':
        return kDigits;
      case 'w':
        return kWord;
      case 's':
        return kSpaces;
      case 'D':
        return complement(kDigits);
      case 'W':
        return complement(kWord);
      case 'S':
        return complement(kSpaces);
      case 't':
        return single('\t');
      case 'n':
        return single('\n');
      case 'r':
        return single('\r');
      case 'f':
        return single('\f');
      case 'v':
        return single('\v');
      case 'u':
        return hex(4);
      case 'x':
        return hex(2);
      default:
        break;
    }
    const bool sign =
        c > 0x20 && c < 0x7f && !(c >= '0' && c <= '9') && !(c >= 'a' && c <= 'z') && !(c >= 'A' && c <= 'Z');
    if (!sign) return refuse(in_class ? "this escape in a class" : "this escape");
    return single(static_cast<char>(c));
  }

  Result<Ranges> character_class() {
    const bool negated = take('^');
    Ranges out;
    while (!take(']')) {
      if (peek() < 0) return refuse("an unbalanced '['");
      Ranges low;
      if (take('\\')) {
        low = RETORT_TRY(escape(true));
      } else {
        const std::uint32_t c = RETORT_TRY(character());
        low = {{c, c}};
      }
      if (peek() == '-' && peek(1) != ']' && peek(1) >= 0) {
        ++at_;
        Ranges high;
        if (take('\\')) {
          high = RETORT_TRY(escape(true));
        } else {
          const std::uint32_t c = RETORT_TRY(character());
          high = {{c, c}};
        }
        if (low.size() != 1 || low[0].first != low[0].second || high.size() != 1 ||
            high[0].first != high[0].second || low[0].first > high[0].first)
          return refuse("this range of a class");
        low = {{low[0].first, high[0].first}};
      }
      out.insert(out.end(), low.begin(), low.end());
    }
    return negated ? complement(out) : tidy(std::move(out));
  }

  /// One character of `ranges` as JSON strings spell it: raw where that is possible.
  Result<void> emit(NodeId from, NodeId to, const Ranges& ranges) {
    if (dry_ != 0) return {};
    const auto escaped = [&](std::string_view text) {
      const NodeId last = network_.text(from, text.substr(0, text.size() - 1));
      const auto end = static_cast<std::uint8_t>(text.back());
      network_.bytes(last, end, end, to);
    };
    for (const auto& [low, high] : ranges) {
      for (std::uint32_t c = low; c <= std::min<std::uint32_t>(high, 0x7f);) {
        if (c == '"' || c == '\\') {
          escaped(c == '"' ? "\\\"" : "\\\\");
          ++c;
        } else if (c < 0x20) {
          constexpr std::string_view kHex = "0123456789abcdef";
          const std::string_view name = c == '\b'   ? "\\b"
                                        : c == '\f' ? "\\f"
                                        : c == '\n' ? "\\n"
                                        : c == '\r' ? "\\r"
                                        : c == '\t' ? "\\t"
                                                    : "";
          escaped(name.empty() ? std::string("\\u00") + kHex[c >> 4] + kHex[c & 15] : std::string(name));
          ++c;
        } else {
          const std::uint32_t stop = c < '"' ? '"' - 1u : c < '\\' ? '\\' - 1u : 0x7fu;
          const std::uint32_t last = std::min({high, stop, 0x7fu});
          network_.bytes(from, static_cast<std::uint8_t>(c), static_cast<std::uint8_t>(last), to);
          c = last + 1;
        }
      }
      if (ascii_) continue;  // other characters cannot be written; the rest of the class can
      constexpr std::pair<std::uint32_t, std::uint32_t> kLengths[] = {
          {0x80, 0x7ff}, {0x800, 0xd7ff}, {0xe000, 0xffff}, {0x10000, 0x10ffff}};
      for (const auto& [least, most] : kLengths)
        if (const std::uint32_t a = std::max(low, least), b = std::min(high, most); a <= b)
          network_.between(from, to, utf8_of(a), utf8_of(b), 0x80, 0xbf);
    }
    return {};
  }

  Network& network_;
  const std::string_view text_;
  const bool ascii_;
  const std::size_t limit_;
  std::size_t at_ = 0;
  int dry_ = 0, depth_ = 0;
};

}  // namespace

Result<void> compile_pattern(Network& network, NodeId from, NodeId to, std::string_view pattern, bool ascii) {
  if (pattern.size() > 1000)
    return fail(ErrorCode::kUnsupported, "", "a pattern of {} bytes is too long", pattern.size());
  return PatternParser(network, pattern, ascii).whole(from, to);
}

}  // namespace retort::grammar
