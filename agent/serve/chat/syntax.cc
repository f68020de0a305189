#include "agent/serve/chat/syntax.h"

#include <algorithm>
#include <charconv>

namespace retort::chat {
namespace {

constexpr std::uint32_t kMaxNesting = 120;
constexpr std::size_t kMaxSource = 1 << 20, kMaxTokens = 1 << 18;

struct Token {
  enum Kind {
    kText,
    kOpenOutput,
    kCloseOutput,
    kOpenBlock,
    kCloseBlock,
    kName,
    kString,
    kNumber,
    kSymbol,
    kEnd
  };
  Kind kind = kEnd;
  std::string text;
  std::uint32_t line = 1;
};

bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' || c == '\v'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool begins_name(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         static_cast<unsigned char>(c) >= 0x80;
}

/// Cuts a template into text, tags and what stands in them, with Jinja's rules for white space around tags.
class Lexer {
 public:
  Lexer(std::string_view source, std::string_view where) : source_(source), where_(where) {}

  Result<std::vector<Token>> run() {
    if (source_.ends_with('\n')) source_.remove_suffix(1);
    while (at_ < source_.size()) {
      if (out_.size() > kMaxTokens) return error("the template has more than {} parts", kMaxTokens);
      std::size_t tag = at_;
      while ((tag = source_.find('{', tag)) != std::string_view::npos) {
        const char next = tag + 1 < source_.size() ? source_[tag + 1] : ' ';
        if (next == '{' || next == '%' || next == '#') break;
        ++tag;
      }
      if (tag == std::string_view::npos) {
        text(source_.substr(at_), false, ' ');
        at_ = source_.size();
        break;
      }
      const char kind = source_[tag + 1];
      const char mark = tag + 2 < source_.size() ? source_[tag + 2] : ' ';
      text(source_.substr(at_, tag - at_), kind != '{', mark);
      advance(tag + 2 + (mark == '-' || (mark == '+' && kind != '{') ? 1 : 0));
      if (kind == '#') {
        const std::size_t end = source_.find("#}", at_);
        if (end == std::string_view::npos) return error("a comment is not closed");
        const bool strip = end > at_ && source_[end - 1] == '-';
        advance(end + 2);
        after_tag(strip, true);
        continue;
      }
      push(kind == '{' ? Token::kOpenOutput : Token::kOpenBlock, "");
      RETORT_TRY(inside(kind == '{' ? '}' : '%'));
    }
    push(Token::kEnd, "");
    return std::move(out_);
  }

 private:
  template <typename... Args>
  tl::unexpected<Error> error(fmt::format_string<Args...> format, Args&&... args) const {
    return fail(ErrorCode::kInvalid, fmt::format("{}:{}", where_, line_), format,
                std::forward<Args>(args)...);
  }
  void push(Token::Kind kind, std::string text) { out_.push_back({kind, std::move(text), line_}); }
  void advance(std::size_t to) {
    line_ += static_cast<std::uint32_t>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(at_),
                                                   source_.begin() + static_cast<std::ptrdiff_t>(to), '\n'));
    at_ = to;
  }
  void text(std::string_view piece, bool block, char mark) {
    const bool starts_line = at_ == 0 || source_[at_ - 1] == '\n';
    const std::string_view whole = piece;
    if (mark == '-') {
      while (!piece.empty() && is_blank(piece.back())) piece.remove_suffix(1);
    } else if (block && mark != '+') {
      const std::size_t newline = piece.rfind('\n');
      const std::size_t line = newline == std::string_view::npos ? 0 : newline + 1;
      if ((line > 0 || starts_line) && std::all_of(piece.begin() + static_cast<std::ptrdiff_t>(line),
                                                   piece.end(), [](char c) { return is_blank(c); }))
        piece = piece.substr(0, line);
    }
    std::string out;
    for (std::size_t i = 0; i < piece.size(); ++i) {
      if (piece[i] == '\r') {
        out += '\n';
        if (i + 1 < piece.size() && piece[i + 1] == '\n') ++i;
      } else {
        out += piece[i];
      }
    }
    if (!out.empty()) push(Token::kText, std::move(out));
    advance(at_ + whole.size());
  }
  void after_tag(bool strip, bool block) {
    std::size_t to = at_;
    if (strip)
      while (to < source_.size() && is_blank(source_[to])) ++to;
    else if (block && to < source_.size() && source_[to] == '\n')
      ++to;
    else if (block && source_.substr(to, 2) == "\r\n")
      to += 2;
    advance(to);
  }

  Result<void> inside(char closing) {
    std::vector<char> open;
    for (;;) {
      std::size_t skip = at_;
      while (skip < source_.size() && is_blank(source_[skip])) ++skip;
      advance(skip);
      if (at_ >= source_.size()) return error("a tag is not closed");
      if (out_.size() > kMaxTokens) return error("the template has more than {} parts", kMaxTokens);
      const char c = source_[at_];
      if (open.empty()) {
        const bool mark = c == '-' || c == '+';
        const std::size_t end = at_ + (mark ? 1 : 0);
        if (end + 1 < source_.size() && source_[end] == closing && source_[end + 1] == '}') {
          push(closing == '}' ? Token::kCloseOutput : Token::kCloseBlock, "");
          advance(end + 2);
          after_tag(c == '-', closing == '%' && c != '+');
          return {};
        }
      }
      if (begins_name(c)) {
        std::size_t end = at_;
        while (end < source_.size() && (begins_name(source_[end]) || is_digit(source_[end]))) ++end;
        push(Token::kName, std::string(source_.substr(at_, end - at_)));
        advance(end);
      } else if (is_digit(c)) {
        std::size_t end = at_;
        const auto digits = [&] {
          while (end < source_.size() && (is_digit(source_[end]) || source_[end] == '_')) ++end;
        };
        digits();
        if (end + 1 < source_.size() && source_[end] == '.' && is_digit(source_[end + 1])) {
          ++end;
          digits();
        }
        if (end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
          std::size_t exponent = end + 1;
          if (exponent < source_.size() && (source_[exponent] == '+' || source_[exponent] == '-')) ++exponent;
          if (exponent < source_.size() && is_digit(source_[exponent])) {
            end = exponent;
            digits();
          }
        }
        std::string number(source_.substr(at_, end - at_));
        std::erase(number, '_');
        push(Token::kNumber, std::move(number));
        advance(end);
      } else if (c == '"' || c == '\'') {
        RETORT_TRY(string(c));
      } else {
        std::string symbol(1, c);
        for (const std::string_view two : {"==", "!=", "<=", ">=", "//", "**"})
          if (source_.substr(at_, 2) == two) symbol = two;
        if (std::string_view("()[]{}.,:|+-*/%~=<>!").find(c) == std::string_view::npos || symbol == "!")
          return error("unexpected '{}'", is_digit(c) || c >= ' ' ? std::string(1, c) : "control character");
        if (c == '(' || c == '[' || c == '{') open.push_back(c);
        if (c == ')' || c == ']' || c == '}') {
          if (open.empty()) return error("'{}' closes nothing", c);
          open.pop_back();
        }
        push(Token::kSymbol, symbol);
        advance(at_ + symbol.size());
      }
    }
  }

  Result<void> string(char mark) {
    std::string value;
    std::size_t i = at_ + 1;
    for (; i < source_.size() && source_[i] != mark; ++i) {
      if (source_[i] != '\\') {
        value += source_[i];
        continue;
      }
      if (++i >= source_.size()) break;
      switch (source_[i]) {
        case 'n':
          value += '\n';
          break;
        case 't':
          value += '\t';
          break;
        case 'r':
          value += '\r';
          break;
        case 'b':
          value += '\b';
          break;
        case 'f':
          value += '\f';
          break;
        case '0':
          value += '\0';
          break;
        case '\\':
        case '\'':
        case '"':
          value += source_[i];
          break;
        case '\n':
          break;
        case 'x':
        case 'u': {
          const std::size_t digits = source_[i] == 'x' ? 2 : 4;
          std::uint32_t point = 0;
          const char *first = source_.data() + i + 1,
                     *last = source_.data() + std::min(source_.size(), i + 1 + digits);
          const auto [end, bad] = std::from_chars(first, last, point, 16);
          if (bad != std::errc() || end != first + digits || (point >= 0xd800 && point < 0xe000))
            return error("a text holds a wrong escape");
          if (point < 0x80) {
            value += static_cast<char>(point);
          } else if (point < 0x800) {
            value += static_cast<char>(0xc0 | point >> 6);
            value += static_cast<char>(0x80 | (point & 63));
          } else {
            value += static_cast<char>(0xe0 | point >> 12);
            value += static_cast<char>(0x80 | (point >> 6 & 63));
            value += static_cast<char>(0x80 | (point & 63));
          }
          i += digits;
          break;
        }
        default:
          (value += '\\') += source_[i];
      }
    }
    if (i >= source_.size()) return error("a text is not closed");
    push(Token::kString, std::move(value));
    advance(i + 1);
    return {};
  }

  std::string_view source_, where_;
  std::size_t at_ = 0;
  std::uint32_t line_ = 1;
  std::vector<Token> out_;
};

class Parser {
 public:
  Parser(std::vector<Token> tokens, std::string_view where) : tokens_(std::move(tokens)), where_(where) {}

  Result<std::vector<Statement>> run() {
    auto body = RETORT_TRY(statements({}));
    if (now().kind != Token::kEnd) return error("'{}' ends nothing", tokens_[at_ + 1].text);
    return body;
  }

 private:
  const Token& now() const { return tokens_[at_]; }
  bool symbol(std::string_view text) const { return now().kind == Token::kSymbol && now().text == text; }
  bool name(std::string_view text) const { return now().kind == Token::kName && now().text == text; }
  bool take_symbol(std::string_view text) { return symbol(text) && (++at_, true); }
  bool take_name(std::string_view text) { return name(text) && (++at_, true); }
  template <typename... Args>
  tl::unexpected<Error> error(fmt::format_string<Args...> format, Args&&... args) const {
    return fail(ErrorCode::kInvalid, fmt::format("{}:{}", where_, now().line), format,
                std::forward<Args>(args)...);
  }
  tl::unexpected<Error> unexpected() const {
    if (now().kind == Token::kCloseOutput || now().kind == Token::kCloseBlock)
      return error("the tag ends too early");
    return error("unexpected '{}'", now().text);
  }
  Result<void> expect(std::string_view text) {
    if (take_symbol(text)) return {};
    return error("'{}' is expected", text);
  }
  Result<void> close_block() {
    if (now().kind != Token::kCloseBlock) return unexpected();
    ++at_;
    return {};
  }
  Result<std::string> identifier() {
    if (now().kind != Token::kName) return unexpected();
    return tokens_[at_++].text;
  }

  // ---- statements ----

  /// Up to a block that begins with one of `ends`, or the end.
  Result<std::vector<Statement>> statements(std::initializer_list<std::string_view> ends) {
    const Nest nest(nesting_);
    if (nesting_ > kMaxNesting) return error("blocks are nested more than {} deep", kMaxNesting);
    std::vector<Statement> out;
    for (;;) {
      Statement s;
      s.line = now().line;
      if (now().kind == Token::kText) {
        s.text = std::move(tokens_[at_++].text);
        out.push_back(std::move(s));
      } else if (now().kind == Token::kOpenOutput) {
        ++at_;
        s.kind = Statement::kOutput;
        s.expression = RETORT_TRY(expression());
        if (now().kind != Token::kCloseOutput) return unexpected();
        ++at_;
        out.push_back(std::move(s));
      } else if (now().kind == Token::kOpenBlock) {
        const Token& keyword = tokens_[at_ + 1];
        if (keyword.kind == Token::kName && std::find(ends.begin(), ends.end(), keyword.text) != ends.end())
          return out;
        if (keyword.text.starts_with("end") || keyword.text == "else" || keyword.text == "elif") {
          if (ends.size() == 0 && keyword.text != "endgeneration") return out;
          if (keyword.text != "endgeneration")
            return error("'{}' where '{}' is expected", keyword.text, *ends.begin());
        }
        ++at_;
        RETORT_TRY(block(s, out));
      } else {
        if (ends.size() != 0) return error("'{}' is missing", *ends.begin());
        return out;
      }
    }
  }

  Result<void> block(Statement& s, std::vector<Statement>& out) {
    const std::string keyword = RETORT_TRY(identifier());
    if (keyword == "generation" || keyword == "endgeneration") return close_block();  // marks for training
    if (keyword == "if") {
      s.kind = Statement::kIf;
      ExpressionPtr condition = RETORT_TRY(expression());
      for (;;) {
        RETORT_TRY(close_block());
        const bool last = condition == nullptr;
        Statement::Branch branch{std::move(condition), {}};
        branch.body =
            last ? RETORT_TRY(statements({"endif"})) : RETORT_TRY(statements({"endif", "elif", "else"}));
        s.branches.push_back(std::move(branch));
        ++at_;  // the block's opening
        const std::string next = RETORT_TRY(identifier());
        if (next == "endif") break;
        condition = next == "elif" ? RETORT_TRY(expression()) : nullptr;
      }
    } else if (keyword == "for") {
      s.kind = Statement::kFor;
      RETORT_TRY(targets(s));
      if (!take_name("in")) return error("'in' is expected");
      s.expression = RETORT_TRY(ternary(false));
      if (take_name("if")) s.condition = RETORT_TRY(expression());
      if (name("recursive")) return unsupported("recursive loops");
      RETORT_TRY(close_block());
      ++loops_;
      s.branches.push_back({nullptr, RETORT_TRY(statements({"endfor", "else"}))});
      --loops_;
      ++at_;
      if (take_name("else")) {
        RETORT_TRY(close_block());
        s.branches.push_back({nullptr, RETORT_TRY(statements({"endfor"}))});
        ++at_;
      }
      ++at_;
    } else if (keyword == "set") {
      s.kind = Statement::kSet;
      RETORT_TRY(targets(s));
      if (take_symbol(".")) {
        s.attribute = RETORT_TRY(identifier());
        if (s.names.size() != 1) return unexpected();
      }
      if (take_symbol("=")) {
        s.expression = RETORT_TRY(tuple());
      } else {
        if (s.names.size() != 1) return unexpected();
        RETORT_TRY(close_block());
        s.branches.push_back({nullptr, RETORT_TRY(statements({"endset"}))});
        at_ += 2;
      }
    } else if (keyword == "macro") {
      s.kind = Statement::kMacro;
      s.names.push_back(RETORT_TRY(identifier()));
      RETORT_TRY(expect("("));
      while (!take_symbol(")")) {
        if (!s.parameters.empty()) RETORT_TRY(expect(","));
        std::string parameter = RETORT_TRY(identifier());
        ExpressionPtr fallback = take_symbol("=") ? RETORT_TRY(expression()) : nullptr;
        s.parameters.emplace_back(std::move(parameter), std::move(fallback));
      }
      RETORT_TRY(close_block());
      const std::uint32_t loops = std::exchange(loops_, 0);
      s.branches.push_back({nullptr, RETORT_TRY(statements({"endmacro"}))});
      loops_ = loops;
      at_ += 2;
      if (now().kind == Token::kName) ++at_;  // "endmacro name"
    } else if (keyword == "break" || keyword == "continue") {
      if (loops_ == 0) return error("'{}' outside a loop", keyword);
      s.kind = keyword == "break" ? Statement::kBreak : Statement::kContinue;
    } else {
      return unsupported("the statement '" + keyword + "'");
    }
    RETORT_TRY(close_block());
    out.push_back(std::move(s));
    return {};
  }

  tl::unexpected<Error> unsupported(std::string_view what) const {
    return fail(ErrorCode::kUnsupported, fmt::format("{}:{}", where_, now().line),
                "{} is not supported; if, for, set, macro, break and continue are", what);
  }

  Result<void> targets(Statement& s) {
    const bool parentheses = take_symbol("(");
    do s.names.push_back(RETORT_TRY(identifier()));
    while (take_symbol(","));
    if (parentheses) RETORT_TRY(expect(")"));
    return {};
  }

  // ---- expressions, loosest first ----

  Result<ExpressionPtr> make(Expression::Kind kind, std::string text, std::vector<ExpressionPtr> arguments) {
    auto out = std::make_unique<Expression>();
    out->kind = kind;
    out->line = now().line;
    out->name = std::move(text);
    out->arguments = std::move(arguments);
    RETORT_TRY(deepen(*out));
    return out;
  }
  Result<void> deepen(Expression& e) {
    for (const ExpressionPtr& argument : e.arguments)
      if (argument) e.depth = std::max(e.depth, argument->depth + 1);
    for (const auto& [key, argument] : e.named) e.depth = std::max(e.depth, argument->depth + 1);
    if (e.depth > kMaxNesting) return error("an expression is nested more than {} deep", kMaxNesting);
    return {};
  }
  template <typename... Arguments>
  Result<ExpressionPtr> node(Expression::Kind kind, std::string text, Arguments... arguments) {
    std::vector<ExpressionPtr> list;
    (list.push_back(std::move(arguments)), ...);
    return make(kind, std::move(text), std::move(list));
  }

  Result<ExpressionPtr> expression() { return ternary(true); }

  /// An expression, or several with commas: a tuple, which is a list here.
  Result<ExpressionPtr> tuple() {
    ExpressionPtr first = RETORT_TRY(expression());
    if (!symbol(",")) return first;
    std::vector<ExpressionPtr> items;
    items.push_back(std::move(first));
    while (take_symbol(","))
      if (now().kind != Token::kCloseBlock) items.push_back(RETORT_TRY(expression()));
    return make(Expression::kList, "", std::move(items));
  }

  Result<ExpressionPtr> ternary(bool with_condition) {
    const Nest nest(nesting_);
    if (nesting_ > kMaxNesting) return error("an expression is nested more than {} deep", kMaxNesting);
    ExpressionPtr value = RETORT_TRY(disjunction());
    while (with_condition && take_name("if")) {
      ExpressionPtr condition = RETORT_TRY(disjunction());
      ExpressionPtr other = take_name("else") ? RETORT_TRY(ternary(true)) : nullptr;
      value = RETORT_TRY(
          node(Expression::kTernary, "", std::move(value), std::move(condition), std::move(other)));
    }
    return value;
  }
  Result<ExpressionPtr> disjunction() {
    ExpressionPtr left = RETORT_TRY(conjunction());
    while (take_name("or"))
      left = RETORT_TRY(node(Expression::kBinary, "or", std::move(left), RETORT_TRY(conjunction())));
    return left;
  }
  Result<ExpressionPtr> conjunction() {
    ExpressionPtr left = RETORT_TRY(negation());
    while (take_name("and"))
      left = RETORT_TRY(node(Expression::kBinary, "and", std::move(left), RETORT_TRY(negation())));
    return left;
  }
  Result<ExpressionPtr> negation() {
    if (!take_name("not")) return comparison();
    const Nest nest(nesting_);
    if (nesting_ > kMaxNesting) return error("an expression is nested more than {} deep", kMaxNesting);
    return node(Expression::kUnary, "not", RETORT_TRY(negation()));
  }
  Result<ExpressionPtr> comparison() {
    ExpressionPtr left = RETORT_TRY(sum());
    for (;;) {
      std::string op;
      for (const std::string_view candidate : {"==", "!=", "<", "<=", ">", ">="})
        if (symbol(candidate)) op = candidate;
      if (name("in")) op = "in";
      if (name("not") && tokens_[at_ + 1].kind == Token::kName && tokens_[at_ + 1].text == "in")
        op = "not in", ++at_;
      if (op.empty()) return left;
      ++at_;
      left = RETORT_TRY(node(Expression::kBinary, op, std::move(left), RETORT_TRY(sum())));
    }
  }
  Result<ExpressionPtr> sum() {
    ExpressionPtr left = RETORT_TRY(concatenation());
    while (symbol("+") || symbol("-")) {
      std::string op = tokens_[at_++].text;
      left = RETORT_TRY(node(Expression::kBinary, op, std::move(left), RETORT_TRY(concatenation())));
    }
    return left;
  }
  Result<ExpressionPtr> concatenation() {
    ExpressionPtr left = RETORT_TRY(product());
    while (take_symbol("~"))
      left = RETORT_TRY(node(Expression::kBinary, "~", std::move(left), RETORT_TRY(product())));
    return left;
  }
  Result<ExpressionPtr> product() {
    ExpressionPtr left = RETORT_TRY(power());
    while (symbol("*") || symbol("/") || symbol("//") || symbol("%")) {
      std::string op = tokens_[at_++].text;
      left = RETORT_TRY(node(Expression::kBinary, op, std::move(left), RETORT_TRY(power())));
    }
    return left;
  }
  Result<ExpressionPtr> power() {
    ExpressionPtr left = RETORT_TRY(unary(true));
    while (take_symbol("**"))
      left = RETORT_TRY(node(Expression::kBinary, "**", std::move(left), RETORT_TRY(unary(true))));
    return left;
  }
  Result<ExpressionPtr> unary(bool with_filters) {
    const Nest nest(nesting_);
    if (nesting_ > kMaxNesting) return error("an expression is nested more than {} deep", kMaxNesting);
    ExpressionPtr value;
    if (symbol("-") || symbol("+")) {
      std::string op = tokens_[at_++].text;
      value = RETORT_TRY(node(Expression::kUnary, op, RETORT_TRY(unary(false))));
    } else {
      value = RETORT_TRY(primary());
    }
    value = RETORT_TRY(postfix(std::move(value)));
    return with_filters ? filters(std::move(value)) : Result<ExpressionPtr>(std::move(value));
  }
  Result<ExpressionPtr> constant(Value value) {
    ExpressionPtr out = RETORT_TRY(make(Expression::kConstant, "", {}));
    out->constant = std::move(value);
    return out;
  }
  Result<ExpressionPtr> primary() {
    const Token& token = now();
    if (token.kind == Token::kName) {
      ++at_;
      if (token.text == "true" || token.text == "True") return constant(Value::of(true));
      if (token.text == "false" || token.text == "False") return constant(Value::of(false));
      if (token.text == "none" || token.text == "None") return constant(Value::none());
      return node(Expression::kName, token.text);
    }
    if (token.kind == Token::kString) {
      std::string text;
      while (now().kind == Token::kString) text += tokens_[at_++].text;
      return constant(Value::of(std::move(text)));
    }
    if (token.kind == Token::kNumber) {
      const char *first = token.text.data(), *last = first + token.text.size();
      std::int64_t integer = 0;
      if (const auto [end, bad] = std::from_chars(first, last, integer); bad == std::errc() && end == last) {
        ++at_;
        return constant(Value::of(integer));
      }
      double real = 0;
      if (const auto [end, bad] = std::from_chars(first, last, real); bad != std::errc() || end != last)
        return error("'{}' is not a number that we can hold", token.text);
      ++at_;
      return constant(Value::of(real));
    }
    if (take_symbol("(")) {
      std::vector<ExpressionPtr> items;
      bool comma = false;
      while (!symbol(")")) {
        items.push_back(RETORT_TRY(expression()));
        if (!take_symbol(",")) break;
        comma = true;
      }
      RETORT_TRY(expect(")"));
      if (items.size() == 1 && !comma) return std::move(items[0]);
      return make(Expression::kList, "", std::move(items));
    }
    if (take_symbol("[")) {
      std::vector<ExpressionPtr> items;
      while (!symbol("]")) {
        items.push_back(RETORT_TRY(expression()));
        if (!take_symbol(",")) break;
      }
      RETORT_TRY(expect("]"));
      return make(Expression::kList, "", std::move(items));
    }
    if (take_symbol("{")) {
      std::vector<ExpressionPtr> items;
      while (!symbol("}")) {
        items.push_back(RETORT_TRY(expression()));
        RETORT_TRY(expect(":"));
        items.push_back(RETORT_TRY(expression()));
        if (!take_symbol(",")) break;
      }
      RETORT_TRY(expect("}"));
      return make(Expression::kDict, "", std::move(items));
    }
    return unexpected();
  }
  /// What stands between the parentheses of a call, the opening one taken.
  Result<void> arguments(Expression& call) {
    while (!symbol(")")) {
      if (now().kind == Token::kName && tokens_[at_ + 1].kind == Token::kSymbol &&
          tokens_[at_ + 1].text == "=") {
        std::string key = now().text;
        at_ += 2;
        call.named.emplace_back(std::move(key), RETORT_TRY(expression()));
      } else {
        if (!call.named.empty()) return error("a positional argument follows a named one");
        call.arguments.push_back(RETORT_TRY(expression()));
      }
      if (!take_symbol(",")) break;
    }
    RETORT_TRY(expect(")"));
    return deepen(call);
  }
  Result<ExpressionPtr> postfix(ExpressionPtr value) {
    for (;;) {
      if (take_symbol(".")) {
        if (now().kind == Token::kNumber) {
          ExpressionPtr index = RETORT_TRY(primary());
          value = RETORT_TRY(node(Expression::kItem, "", std::move(value), std::move(index)));
        } else {
          value = RETORT_TRY(node(Expression::kAttribute, RETORT_TRY(identifier()), std::move(value)));
        }
      } else if (take_symbol("[")) {
        std::vector<ExpressionPtr> parts(1);
        bool slice = false;
        while (!symbol("]")) {
          if (take_symbol(":")) {
            slice = true;
            parts.emplace_back();
            if (parts.size() > 3) return unexpected();
          } else if (parts.back() == nullptr) {
            parts.back() = RETORT_TRY(expression());
          } else {
            return unexpected();
          }
        }
        ++at_;
        if (slice) {
          parts.resize(3);
          value = RETORT_TRY(node(Expression::kSlice, "", std::move(value), std::move(parts[0]),
                                  std::move(parts[1]), std::move(parts[2])));
        } else {
          if (parts[0] == nullptr) return error("an index is missing");
          value = RETORT_TRY(node(Expression::kItem, "", std::move(value), std::move(parts[0])));
        }
      } else if (take_symbol("(")) {
        value = RETORT_TRY(node(Expression::kCall, "", std::move(value)));
        RETORT_TRY(arguments(*value));
      } else {
        return value;
      }
    }
  }
  Result<ExpressionPtr> filters(ExpressionPtr value) {
    for (;;) {
      if (take_symbol("|")) {
        value = RETORT_TRY(node(Expression::kFilter, RETORT_TRY(identifier()), std::move(value)));
        if (take_symbol("(")) RETORT_TRY(arguments(*value));
      } else if (take_name("is")) {
        const bool negated = take_name("not");
        value = RETORT_TRY(node(Expression::kTest, RETORT_TRY(identifier()), std::move(value)));
        if (take_symbol("(")) {
          RETORT_TRY(arguments(*value));
        } else if (now().kind == Token::kString || now().kind == Token::kNumber || symbol("[") ||
                   symbol("{") ||
                   (now().kind == Token::kName && !name("else") && !name("or") && !name("and") &&
                    !name("is") && !name("if") && !name("not") && !name("in"))) {
          ExpressionPtr argument = RETORT_TRY(postfix(RETORT_TRY(primary())));
          value->arguments.push_back(std::move(argument));
          RETORT_TRY(deepen(*value));
        }
        if (negated) value = RETORT_TRY(node(Expression::kUnary, "not", std::move(value)));
      } else if (take_symbol("(")) {
        value = RETORT_TRY(node(Expression::kCall, "", std::move(value)));
        RETORT_TRY(arguments(*value));
      } else {
        return value;
      }
    }
  }

  std::vector<Token> tokens_;
  std::string_view where_;
  std::size_t at_ = 0;
  std::uint32_t nesting_ = 0, loops_ = 0;
};

}  // namespace

Result<std::vector<Statement>> parse_template(std::string_view source, std::string_view where) {
  if (source.size() > kMaxSource)
    return fail(ErrorCode::kInvalid, std::string(where), "the template has {} bytes, the limit is {}",
                source.size(), kMaxSource);
  return Parser(RETORT_TRY(Lexer(source, where).run()), where).run();
}

}  // namespace retort::chat
