#include "agent/serve/chat/chat_template.h"

#include <algorithm>
#include <cmath>
#include <ctime>
#include <deque>
#include <map>
#include <optional>

#include "agent/serve/chat/syntax.h"

namespace retort {
namespace {

using namespace chat;

constexpr std::uint64_t kMaxWork = 16u << 20;              // steps and bytes of intermediate results
constexpr std::uint64_t kValueWork = 48, kTextWork = 112;  // bytes of a value in a list, and of a short text
constexpr std::uint32_t kMaxNesting = 300;  // of what is under way at once, macros within macros counted

bool is_blank(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool is_upper(char c) { return c >= 'A' && c <= 'Z'; }
bool is_lower(char c) { return c >= 'a' && c <= 'z'; }
char upper(char c) { return is_lower(c) ? static_cast<char>(c - 32) : c; }
char lower(char c) { return is_upper(c) ? static_cast<char>(c + 32) : c; }

std::string strip(std::string_view text, const std::string* of, bool left, bool right) {
  const auto goes = [&](char c) { return of == nullptr ? is_blank(c) : of->find(c) != std::string::npos; };
  while (left && !text.empty() && goes(text.front())) text.remove_prefix(1);
  while (right && !text.empty() && goes(text.back())) text.remove_suffix(1);
  return std::string(text);
}

std::string mapped(std::string_view text, char (*change)(char)) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), change);
  return out;
}

std::string title(std::string_view text, bool every_word) {
  std::string out;
  bool first = true;
  for (const char c : text) {
    out += first ? upper(c) : lower(c);
    first = every_word && !is_upper(c) && !is_lower(c) && static_cast<unsigned char>(c) < 0x80;
  }
  return out;
}

enum class Flow { kOn, kBreak, kContinue };

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
  /// Of a function's parameter: its place, or its name; null where it is not given.
  const Value* get(std::size_t place, std::string_view name = "") const {
    if (place < positional.size()) return &positional[place];
    for (const auto& [key, value] : named)
      if (!name.empty() && key == name) return &value;
    return nullptr;
  }
};

class Interpreter {
 public:
  Interpreter(std::string_view where) : where_(where) { scopes_.emplace_back(); }

  Result<std::string> run(const std::vector<Statement>& program, const json::object& variables) {
    using Function = Value::Function;
    set("range", {Function{Function::kRange}});
    set("namespace", {Function{Function::kNamespace}});
    set("dict", {Function{Function::kDict}});
    set("raise_exception", {Function{Function::kRaise}});
    set("strftime_now", {Function{Function::kNow}});
    for (const auto& member : variables) set(member.key(), RETORT_TRY(Value::from_json(member.value())));
    std::string out;
    RETORT_TRY(execute(program, out));
    return out;
  }

 private:
  using Scope = std::map<std::string, Value, std::less<>>;

  template <typename... Args>
  tl::unexpected<Error> error(fmt::format_string<Args...> format, Args&&... args) const {
    return fail(ErrorCode::kInvalid, fmt::format("{}:{}", where_, line_), format,
                std::forward<Args>(args)...);
  }
  Result<void> spend(std::uint64_t work) {
    work_ += work;
    if (work_ <= kMaxWork) return {};
    return error("the chat template takes too long");
  }
  /// Where each character begins, and the end.
  Result<std::vector<std::size_t>> characters(std::string_view text) {
    RETORT_TRY(spend(sizeof(std::size_t) * text.size()));
    std::vector<std::size_t> out;
    for (std::size_t i = 0; i < text.size(); ++i)
      if ((static_cast<unsigned char>(text[i]) & 0xc0) != 0x80) out.push_back(i);
    out.push_back(text.size());
    return out;
  }
  /// Errors of values, which know no place.
  Result<Value> placed(Result<Value> value) const {
    if (!value && value.error().where.empty()) return error("{}", value.error().message);
    return value;
  }
  Result<Value> text(std::string value) {
    RETORT_TRY(spend(value.size()));
    return Value::of(std::move(value));
  }
  Result<Value> list(List value) {
    RETORT_TRY(spend(kValueWork * value.size()));
    return placed(Value::of(std::move(value)));
  }
  void set(std::string_view name, Value value) {
    scopes_.back().insert_or_assign(std::string(name), std::move(value));
  }
  Value look_up(const std::string& name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope)
      if (const auto found = scope->find(name); found != scope->end()) return found->second;
    return {Value::Undefined{name}};
  }

  // ---- statements ----

  Result<Flow> execute(const std::vector<Statement>& body, std::string& out) {
    const Nest nest(nesting_);
    if (nesting_ > kMaxNesting) return error("the chat template is nested too deeply");
    for (const Statement& s : body) {
      line_ = s.line;
      RETORT_TRY(spend(1));
      switch (s.kind) {
        case Statement::kText:
          RETORT_TRY(spend(s.text.size()));
          out += s.text;
          break;
        case Statement::kOutput: {
          const Value value = RETORT_TRY(evaluate(*s.expression));
          const std::string text = to_text(value);
          RETORT_TRY(spend(text.size()));
          out += text;
          break;
        }
        case Statement::kIf:
          for (const Statement::Branch& branch : s.branches) {
            if (branch.condition && !RETORT_TRY(evaluate(*branch.condition)).truth()) continue;
            if (const Flow flow = RETORT_TRY(execute(branch.body, out)); flow != Flow::kOn) return flow;
            break;
          }
          break;
        case Statement::kFor:
          RETORT_TRY(loop(s, out));
          break;
        case Statement::kSet:
          RETORT_TRY(assign(s));
          break;
        case Statement::kMacro:
          set(s.names[0], {Value::Macro{&s}});
          break;
        case Statement::kBreak:
          return Flow::kBreak;
        case Statement::kContinue:
          return Flow::kContinue;
      }
    }
    return Flow::kOn;
  }

  Result<void> unpack(const Statement& s, const Value& value) {
    if (s.names.size() == 1) {
      set(s.names[0], value);
      return {};
    }
    const List* parts = value.list();
    if (parts == nullptr || parts->size() != s.names.size())
      return error("{} values are expected, to unpack", s.names.size());
    for (std::size_t i = 0; i < parts->size(); ++i) set(s.names[i], (*parts)[i]);
    return {};
  }

  Result<void> assign(const Statement& s) {
    Value value;
    if (s.expression) {
      value = RETORT_TRY(evaluate(*s.expression));
    } else {
      std::string block;
      scopes_.emplace_back();
      RETORT_TRY(execute(s.branches[0].body, block));
      scopes_.pop_back();
      value = RETORT_TRY(text(std::move(block)));
    }
    if (s.attribute.empty()) return unpack(s, value);
    const Value target = look_up(s.names[0]);
    Dict* dict = target.dict();
    if (dict == nullptr || !dict->is_namespace) return error("'{}' is not a namespace", s.names[0]);
    if (value.dict() != nullptr && value.dict()->is_namespace)
      return error("a namespace cannot be part of another value");
    for (auto& [name, member] : dict->members)
      if (name == s.attribute) {
        member = std::move(value);
        return {};
      }
    dict->members.emplace_back(s.attribute, std::move(value));
    return {};
  }

  Result<void> loop(const Statement& s, std::string& out) {
    List items = RETORT_TRY(sequence(RETORT_TRY(evaluate(*s.expression))));
    scopes_.emplace_back();
    if (s.condition) {
      List kept;
      for (Value& item : items) {
        RETORT_TRY(unpack(s, item));
        if (RETORT_TRY(evaluate(*s.condition)).truth()) kept.push_back(std::move(item));
      }
      items = std::move(kept);
    }
    const auto n = static_cast<std::int64_t>(items.size());
    for (std::int64_t i = 0; i < n; ++i) {
      RETORT_TRY(spend(16));
      scopes_.back().clear();
      Dict loop;
      const auto at = [&](std::int64_t j) {
        return j >= 0 && j < n ? items[static_cast<std::size_t>(j)] : Value{Value::Undefined{"loop item"}};
      };
      loop.members = {
          {"index", Value::of(i + 1)},         {"index0", Value::of(i)}, {"first", Value::of(i == 0)},
          {"last", Value::of(i == n - 1)},     {"length", Value::of(n)}, {"revindex", Value::of(n - i)},
          {"revindex0", Value::of(n - i - 1)}, {"previtem", at(i - 1)},  {"nextitem", at(i + 1)}};
      set("loop", RETORT_TRY(placed(Value::of(std::move(loop)))));
      RETORT_TRY(unpack(s, items[static_cast<std::size_t>(i)]));
      if (RETORT_TRY(execute(s.branches[0].body, out)) == Flow::kBreak) break;
    }
    scopes_.pop_back();
    if (n == 0 && s.branches.size() > 1) RETORT_TRY(execute(s.branches[1].body, out));
    return {};
  }

  /// What a loop or a filter goes through.
  Result<List> sequence(const Value& value) {
    List out;
    if (const List* items = value.list()) {
      RETORT_TRY(spend(kValueWork * items->size()));
      out = *items;
    } else if (const Dict* dict = value.dict(); dict != nullptr && !dict->is_namespace) {
      RETORT_TRY(spend(kTextWork * dict->members.size()));
      for (const auto& [name, member] : dict->members) out.push_back(Value::of(name));
    } else if (const std::string* text = value.text()) {
      const auto at = RETORT_TRY(characters(*text));
      RETORT_TRY(spend(kTextWork * at.size()));
      for (std::size_t i = 0; i + 1 < at.size(); ++i)
        out.push_back(Value::of(text->substr(at[i], at[i + 1] - at[i])));
    } else if (!value.undefined()) {
      return error("a value of type {} cannot be gone through", value.type());
    }
    return out;
  }

  // ---- expressions ----

  Result<Value> evaluate(const Expression& e) {
    const Nest nest(nesting_);
    if (nesting_ > kMaxNesting) return error("the chat template is nested too deeply");
    line_ = e.line;
    RETORT_TRY(spend(1));
    switch (e.kind) {
      case Expression::kConstant:
        return e.constant;
      case Expression::kName:
        return look_up(e.name);
      case Expression::kList: {
        List items;
        for (const ExpressionPtr& item : e.arguments) items.push_back(RETORT_TRY(evaluate(*item)));
        return list(std::move(items));
      }
      case Expression::kDict: {
        Dict dict;
        for (std::size_t i = 0; i + 1 < e.arguments.size(); i += 2) {
          const Value key = RETORT_TRY(evaluate(*e.arguments[i]));
          if (key.text() == nullptr) return error("a dictionary's keys must be texts, not {}", key.type());
          put(dict, *key.text(), RETORT_TRY(evaluate(*e.arguments[i + 1])));
        }
        RETORT_TRY(spend(kTextWork * dict.members.size()));
        return placed(Value::of(std::move(dict)));
      }
      case Expression::kAttribute:
        return attribute(RETORT_TRY(evaluate(*e.arguments[0])), e.name);
      case Expression::kItem: {
        const Value base = RETORT_TRY(evaluate(*e.arguments[0]));
        return item(base, RETORT_TRY(evaluate(*e.arguments[1])));
      }
      case Expression::kSlice:
        return slice(e);
      case Expression::kCall:
        return call(e);
      case Expression::kFilter: {
        const Value base = RETORT_TRY(evaluate(*e.arguments[0]));
        return filter(e.name, base, RETORT_TRY(arguments(e)));
      }
      case Expression::kTest: {
        const Value base = RETORT_TRY(evaluate(*e.arguments[0]));
        return Value::of(RETORT_TRY(test(e.name, base, RETORT_TRY(arguments(e)).positional)));
      }
      case Expression::kUnary: {
        const Value value = RETORT_TRY(evaluate(*e.arguments[0]));
        if (e.name == "not") return Value::of(!value.truth());
        if (const std::int64_t* i = value.integer()) {
          if (e.name == "+") return value;
          if (*i == INT64_MIN) return error("the number is too large");
          return Value::of(-*i);
        }
        double number = 0;
        if (!value.number(number)) return error("'{}' of a value of type {}", e.name, value.type());
        return Value::of(e.name == "-" ? -number : number);
      }
      case Expression::kBinary:
        return binary(e);
      case Expression::kTernary:
        if (RETORT_TRY(evaluate(*e.arguments[1])).truth()) return evaluate(*e.arguments[0]);
        if (e.arguments[2]) return evaluate(*e.arguments[2]);
        return Value{};
    }
    return Value{};
  }

  static void put(Dict& dict, const std::string& key, Value value) {
    for (auto& [name, member] : dict.members)
      if (name == key) {
        member = std::move(value);
        return;
      }
    dict.members.emplace_back(key, std::move(value));
  }

  Result<Arguments> arguments(const Expression& e) {
    Arguments out;
    for (std::size_t i = 1; i < e.arguments.size(); ++i)
      out.positional.push_back(RETORT_TRY(evaluate(*e.arguments[i])));
    for (const auto& [name, value] : e.named) out.named.emplace_back(name, RETORT_TRY(evaluate(*value)));
    return out;
  }

  Result<Value> attribute(const Value& base, const std::string& name) {
    if (base.undefined()) return error("'{}' is undefined", std::get<Value::Undefined>(base.is).name);
    if (const Dict* dict = base.dict())
      if (const Value* found = dict->find(name)) {
        RETORT_TRY(spend(dict->members.size() / 16));
        return *found;
      }
    return Value{Value::Undefined{name}};
  }

  Result<Value> item(const Value& base, const Value& key) {
    if (key.text() != nullptr) return attribute(base, *key.text());
    if (base.undefined()) return error("'{}' is undefined", std::get<Value::Undefined>(base.is).name);
    const std::int64_t* index = key.integer();
    if (index == nullptr) return Value{Value::Undefined{to_text(key)}};
    const auto place = [&](std::size_t size) -> std::optional<std::size_t> {
      const auto n = static_cast<std::int64_t>(size);
      const std::int64_t i = *index < 0 ? *index + n : *index;
      if (i < 0 || i >= n) return std::nullopt;
      return static_cast<std::size_t>(i);
    };
    if (const List* items = base.list())
      if (const auto i = place(items->size())) return (*items)[*i];
    if (const std::string* text = base.text()) {
      const auto at = RETORT_TRY(characters(*text));
      if (const auto i = place(at.size() - 1)) return Value::of(text->substr(at[*i], at[*i + 1] - at[*i]));
    }
    return Value{Value::Undefined{"item " + std::to_string(*index)}};
  }

  Result<Value> slice(const Expression& e) {
    const Value base = RETORT_TRY(evaluate(*e.arguments[0]));
    std::optional<std::int64_t> bounds[3];
    for (std::size_t i = 0; i < 3; ++i) {
      if (!e.arguments[i + 1]) continue;
      const Value value = RETORT_TRY(evaluate(*e.arguments[i + 1]));
      if (std::holds_alternative<Value::None>(value.is)) continue;
      if (value.integer() == nullptr) return error("a slice's bounds must be integers, not {}", value.type());
      bounds[i] = std::clamp<std::int64_t>(*value.integer(), -(1ll << 40), 1ll << 40);
    }
    const std::int64_t step = bounds[2].value_or(1);
    if (step == 0) return error("a slice's step is 0");
    if (base.list() == nullptr && base.text() == nullptr)
      return error("a value of type {} has no slices", base.type());
    const auto at = RETORT_TRY(characters(base.text() != nullptr ? std::string_view(*base.text()) : ""));
    RETORT_TRY(spend(base.list() != nullptr ? kValueWork * base.list()->size() : 0));
    const auto n = static_cast<std::int64_t>(base.text() != nullptr ? at.size() - 1 : base.list()->size());
    const auto clip = [&](std::int64_t i, std::int64_t low, std::int64_t high) {
      return std::clamp(i < 0 ? i + n : i, low, high);
    };
    const std::int64_t low = step > 0 ? 0 : -1, high = step > 0 ? n : n - 1;
    const std::int64_t from = bounds[0] ? clip(*bounds[0], low, high) : (step > 0 ? low : high);
    const std::int64_t to = bounds[1] ? clip(*bounds[1], low, high) : (step > 0 ? high : low);
    std::string piece;
    List items;
    for (std::int64_t i = from; step > 0 ? i < to : i > to; i += step) {
      const auto j = static_cast<std::size_t>(i);
      if (base.text() != nullptr)
        piece.append(*base.text(), at[j], at[j + 1] - at[j]);
      else
        items.push_back((*base.list())[j]);
    }
    return base.text() != nullptr ? text(std::move(piece)) : list(std::move(items));
  }

  Result<Value> binary(const Expression& e) {
    const std::string& op = e.name;
    const Value a = RETORT_TRY(evaluate(*e.arguments[0]));
    if (op == "and") return a.truth() ? evaluate(*e.arguments[1]) : Result<Value>(a);
    if (op == "or") return a.truth() ? Result<Value>(a) : evaluate(*e.arguments[1]);
    const Value b = RETORT_TRY(evaluate(*e.arguments[1]));
    line_ = e.line;
    if (op == "~") return text(to_text(a) + to_text(b));
    if (op == "==" || op == "!=") {
      RETORT_TRY(weigh(a));
      return Value::of(equal(a, b) == (op == "=="));
    }
    if (op == "in" || op == "not in") return Value::of(RETORT_TRY(contains(b, a)) == (op == "in"));
    const auto refuse = [&]() -> Result<Value> {
      for (const Value* side : {&a, &b})
        if (const auto* undefined = std::get_if<Value::Undefined>(&side->is))
          return error("'{}' is undefined", undefined->name);
      return error("'{}' of values of types {} and {}", op, a.type(), b.type());
    };
    if (op == "<" || op == "<=" || op == ">" || op == ">=") {
      int order = 0;
      double x = 0, y = 0;
      if (a.number(x) && b.number(y))
        order = x < y ? -1 : x > y ? 1 : 0;
      else if (a.text() != nullptr && b.text() != nullptr)
        order = a.text()->compare(*b.text());
      else
        return refuse();
      return Value::of(op == "<" ? order < 0 : op == "<=" ? order <= 0 : op == ">" ? order > 0 : order >= 0);
    }
    if (op == "+" && a.text() != nullptr && b.text() != nullptr) return text(*a.text() + *b.text());
    if (op == "+" && a.list() != nullptr && b.list() != nullptr) {
      RETORT_TRY(spend(kValueWork * (a.list()->size() + b.list()->size())));
      List joined = *a.list();
      joined.insert(joined.end(), b.list()->begin(), b.list()->end());
      return list(std::move(joined));
    }
    if (op == "*" && a.text() != nullptr && b.integer() != nullptr) {
      const auto times = static_cast<std::uint64_t>(std::max<std::int64_t>(*b.integer(), 0));
      RETORT_TRY(spend(std::min<std::uint64_t>(times, kMaxWork + 1)));
      RETORT_TRY(spend(times * std::min<std::uint64_t>(a.text()->size(), kMaxWork)));
      std::string out;
      for (std::uint64_t i = 0; i < times; ++i) out += *a.text();
      return Value::of(std::move(out));
    }
    if (op == "%" && a.text() != nullptr)
      return fail(ErrorCode::kUnsupported, fmt::format("{}:{}", where_, line_),
                  "'%' of texts is not supported");
    return arithmetic(op, a, b, refuse);
  }

  template <typename Refuse>
  Result<Value> arithmetic(const std::string& op, const Value& a, const Value& b, const Refuse& refuse) {
    double x = 0, y = 0;
    if (!a.number(x) || !b.number(y)) return refuse();
    const bool whole = !std::holds_alternative<double>(a.is) && !std::holds_alternative<double>(b.is);
    if ((op == "/" || op == "//" || op == "%") && y == 0) return error("division by zero");
    if (op == "/") return Value::of(x / y);
    if (whole && op != "**") {
      const auto integer = [](const Value& v) {
        return v.integer() != nullptr ? *v.integer() : std::int64_t{std::get<bool>(v.is)};
      };
      const std::int64_t i = integer(a), j = integer(b);
      std::int64_t out = 0;
      bool overflow = false;
      if (op == "+") {
        overflow = __builtin_add_overflow(i, j, &out);
      } else if (op == "-") {
        overflow = __builtin_sub_overflow(i, j, &out);
      } else if (op == "*") {
        overflow = __builtin_mul_overflow(i, j, &out);
      } else if (i == INT64_MIN && j == -1) {
        overflow = true;
      } else {  // towards minus infinity, as Python's
        const std::int64_t quotient = i / j - (i % j != 0 && (i < 0) != (j < 0) ? 1 : 0);
        out = op == "//" ? quotient : i - quotient * j;
      }
      if (overflow) return error("the number is too large");
      return Value::of(out);
    }
    if (op == "+") return Value::of(x + y);
    if (op == "-") return Value::of(x - y);
    if (op == "*") return Value::of(x * y);
    if (op == "//") return Value::of(std::floor(x / y));
    if (op == "%") return Value::of(x - std::floor(x / y) * y);
    const double power = std::pow(x, y);
    if (whole && y >= 0 && std::abs(power) < 9e15) return Value::of(static_cast<std::int64_t>(power));
    return Value::of(power);
  }

  /// Charges for looking at all of a value.
  Result<void> weigh(const Value& value) {
    if (value.text() != nullptr) return spend(value.text()->size() / 16);
    std::uint64_t work = 0;
    if (value.list() != nullptr) {
      work = value.list()->size();
      for (const Value& item : *value.list()) RETORT_TRY(weigh(item));
    }
    if (value.dict() != nullptr) {
      work = value.dict()->members.size();
      for (const auto& [name, item] : value.dict()->members) RETORT_TRY(weigh(item));
    }
    return spend(work);
  }

  Result<bool> contains(const Value& whole, const Value& part) {
    RETORT_TRY(weigh(whole));
    if (const std::string* text = whole.text()) {
      if (part.text() == nullptr) return error("a text cannot contain a value of type {}", part.type());
      return text->find(*part.text()) != std::string::npos;
    }
    if (const List* items = whole.list())
      return std::any_of(items->begin(), items->end(), [&](const Value& item) { return equal(item, part); });
    if (const Dict* dict = whole.dict()) return part.text() != nullptr && dict->find(*part.text()) != nullptr;
    if (whole.undefined()) return false;
    return error("'in' of a value of type {}", whole.type());
  }

  // ---- calls ----

  Result<Value> call(const Expression& e) {
    const Expression& callee = *e.arguments[0];
    if (callee.kind == Expression::kAttribute) {
      const Value base = RETORT_TRY(evaluate(*callee.arguments[0]));
      const Dict* dict = base.dict();
      if (dict == nullptr || dict->find(callee.name) == nullptr) {
        const Arguments given = RETORT_TRY(arguments(e));
        line_ = e.line;
        return method(base, callee.name, given);
      }
    }
    const Value target = RETORT_TRY(evaluate(callee));
    const Arguments given = RETORT_TRY(arguments(e));
    line_ = e.line;
    if (const auto* macro = std::get_if<Value::Macro>(&target.is))
      return call_macro(*macro->definition, given);
    if (const auto* function = std::get_if<Value::Function>(&target.is))
      return call_function(function->which, given);
    if (target.undefined()) return error("'{}' is undefined", std::get<Value::Undefined>(target.is).name);
    return error("a value of type {} cannot be called", target.type());
  }

  Result<Value> call_macro(const Statement& macro, const Arguments& given) {
    if (given.positional.size() > macro.parameters.size())
      return error("macro '{}' takes {} arguments", macro.names[0], macro.parameters.size());
    Scope own;
    for (const auto& [name, value] : given.named) own.insert_or_assign(name, value);
    // A macro sees the globals and its own arguments.
    std::deque<Scope> outer;
    while (scopes_.size() > 1) {
      outer.push_front(std::move(scopes_.back()));
      scopes_.pop_back();
    }
    scopes_.push_back(std::move(own));
    for (std::size_t i = 0; i < macro.parameters.size(); ++i) {
      const auto& [name, fallback] = macro.parameters[i];
      if (i < given.positional.size())
        set(name, given.positional[i]);
      else if (scopes_.back().find(name) == scopes_.back().end())
        set(name, fallback ? RETORT_TRY(evaluate(*fallback)) : Value{Value::Undefined{name}});
    }
    std::string out;
    RETORT_TRY(execute(macro.branches[0].body, out));
    scopes_.pop_back();
    for (Scope& scope : outer) scopes_.push_back(std::move(scope));
    return text(std::move(out));
  }

  Result<Value> call_function(Value::Function::Which which, const Arguments& given) {
    switch (which) {
      case Value::Function::kRange: {
        std::int64_t bounds[3] = {0, 0, 1};
        const std::size_t n = given.positional.size();
        if (n < 1 || n > 3) return error("range() takes 1 to 3 numbers");
        for (std::size_t i = 0; i < n; ++i) {
          const std::int64_t* value = given.positional[i].integer();
          if (value == nullptr) return error("range() takes integers, not {}", given.positional[i].type());
          bounds[n == 1 ? 1 : i] = std::clamp<std::int64_t>(*value, -(1ll << 40), 1ll << 40);
        }
        if (bounds[2] == 0) return error("range()'s step is 0");
        const std::int64_t count = std::max<std::int64_t>(
            0, (bounds[1] - bounds[0] + bounds[2] - (bounds[2] > 0 ? 1 : -1)) / bounds[2]);
        RETORT_TRY(spend(kValueWork * static_cast<std::uint64_t>(count)));
        List out;
        for (std::int64_t i = 0; i < count; ++i) out.push_back(Value::of(bounds[0] + i * bounds[2]));
        return Value::of(std::move(out));
      }
      case Value::Function::kNamespace:
      case Value::Function::kDict: {
        Dict dict;
        if (const Value* from = given.get(0); from != nullptr && from->dict() != nullptr)
          dict = *from->dict();
        for (const auto& [name, value] : given.named) put(dict, name, value);
        dict.is_namespace = which == Value::Function::kNamespace;
        return placed(Value::of(std::move(dict)));
      }
      case Value::Function::kRaise: {
        const Value* message = given.get(0, "message");
        return error("{}", message == nullptr ? "refused" : to_text(*message));
      }
      case Value::Function::kNow: {
        const Value* format = given.get(0, "format");
        if (format == nullptr || format->text() == nullptr || format->text()->size() > 100)
          return error("strftime_now() takes a format");
        const std::time_t now = std::time(nullptr);
        std::tm parts{};
        ::localtime_r(&now, &parts);
        char out[1024];
        const std::size_t length = std::strftime(out, sizeof out, format->text()->c_str(), &parts);
        return text(std::string(out, length));
      }
    }
    return Value{};
  }

  Result<Value> method(const Value& base, const std::string& name, const Arguments& given) {
    const auto given_text = [&](std::size_t i) -> const std::string* {
      const Value* value = given.get(i);
      return value == nullptr ? nullptr : value->text();
    };
    if (const std::string* s = base.text()) {
      RETORT_TRY(spend(s->size()));
      if (name == "strip" || name == "lstrip" || name == "rstrip")
        return text(strip(*s, given_text(0), name != "rstrip", name != "lstrip"));
      if (name == "upper") return text(mapped(*s, upper));
      if (name == "lower") return text(mapped(*s, lower));
      if (name == "title" || name == "capitalize") return text(title(*s, name == "title"));
      if (name == "startswith" || name == "endswith") {
        const auto matches = [&](const std::string& part) {
          return name == "startswith" ? s->starts_with(part) : s->ends_with(part);
        };
        if (const std::string* part = given_text(0)) return Value::of(matches(*part));
        const Value* parts = given.get(0);
        if (parts == nullptr || parts->list() == nullptr) return error("{}() takes a text", name);
        return Value::of(std::any_of(parts->list()->begin(), parts->list()->end(), [&](const Value& part) {
          return part.text() != nullptr && matches(*part.text());
        }));
      }
      if (name == "split") return split(*s, given);
      if (name == "replace") {
        const std::string *from = given_text(0), *to = given_text(1);
        if (from == nullptr || to == nullptr) return error("replace() takes two texts");
        return replace(*s, *from, *to, given.get(2, "count"));
      }
      if (name == "find") {
        const std::string* part = given_text(0);
        if (part == nullptr) return error("find() takes a text");
        const std::size_t at = s->find(*part);
        if (at == std::string::npos) return Value::of(std::int64_t{-1});
        return Value::of(
            static_cast<std::int64_t>(RETORT_TRY(characters(std::string_view(*s).substr(0, at))).size() - 1));
      }
      if (name == "join") {
        const Value* items = given.get(0);
        if (items == nullptr) return error("join() takes a list");
        return join(*items, *s);
      }
      if (name == "isdigit" || name == "isspace")
        return Value::of(!s->empty() && std::all_of(s->begin(), s->end(), [&](char c) {
          return name == "isdigit" ? c >= '0' && c <= '9' : is_blank(c);
        }));
    }
    if (const Dict* dict = base.dict()) {
      if (name == "items") return items(*dict);
      if (name == "keys" || name == "values") {
        RETORT_TRY(spend(kTextWork * dict->members.size()));
        List out;
        for (const auto& [key, value] : dict->members) out.push_back(name == "keys" ? Value::of(key) : value);
        return list(std::move(out));
      }
      if (name == "get") {
        const std::string* key = given_text(0);
        const Value* found = key == nullptr ? nullptr : dict->find(*key);
        if (found != nullptr) return *found;
        const Value* fallback = given.get(1, "default");
        return fallback == nullptr ? Value::none() : *fallback;
      }
    }
    if (const List* items = base.list()) {
      RETORT_TRY(spend(items->size()));
      if (name == "index" || name == "count") {
        const Value* wanted = given.get(0);
        if (wanted == nullptr) return error("{}() takes a value", name);
        RETORT_TRY(weigh(base));
        if (name == "count")
          return Value::of(static_cast<std::int64_t>(std::count_if(
              items->begin(), items->end(), [&](const Value& item) { return equal(item, *wanted); })));
        for (std::size_t i = 0; i < items->size(); ++i)
          if (equal((*items)[i], *wanted)) return Value::of(static_cast<std::int64_t>(i));
        return error("the value is not in the list");
      }
    }
    if (base.undefined()) return error("'{}' is undefined", std::get<Value::Undefined>(base.is).name);
    return fail(ErrorCode::kUnsupported, fmt::format("{}:{}", where_, line_),
                "a value of type {} has no method '{}'", base.type(), name);
  }

  Result<Value> split(const std::string& s, const Arguments& given) {
    const Value *mark = given.get(0, "sep"), *limit = given.get(1, "maxsplit");
    const std::int64_t most = limit != nullptr && limit->integer() != nullptr ? *limit->integer() : -1;
    List out;
    if (mark == nullptr || mark->text() == nullptr) {
      for (std::size_t at = 0;;) {
        while (at < s.size() && is_blank(s[at])) ++at;
        if (at >= s.size()) break;
        std::size_t end = at;
        const bool rest = most >= 0 && static_cast<std::int64_t>(out.size()) >= most;
        while (end < s.size() && (rest || !is_blank(s[end]))) ++end;
        RETORT_TRY(spend(kTextWork));
        out.push_back(Value::of(s.substr(at, end - at)));
        at = end;
      }
      return list(std::move(out));
    }
    if (mark->text()->empty()) return error("split() by an empty text");
    std::size_t from = 0;
    for (std::size_t at; (at = s.find(*mark->text(), from)) != std::string::npos;) {
      if (most >= 0 && static_cast<std::int64_t>(out.size()) >= most) break;
      RETORT_TRY(spend(kTextWork));
      out.push_back(Value::of(s.substr(from, at - from)));
      from = at + mark->text()->size();
    }
    out.push_back(Value::of(s.substr(from)));
    return list(std::move(out));
  }

  Result<Value> replace(const std::string& s, const std::string& from, const std::string& to,
                        const Value* limit) {
    if (from.empty()) return error("replace() of an empty text");
    std::int64_t left = limit != nullptr && limit->integer() != nullptr ? *limit->integer() : INT64_MAX;
    if (left < 0) left = INT64_MAX;
    std::string out;
    std::size_t at = 0;
    for (std::size_t hit; left-- > 0 && (hit = s.find(from, at)) != std::string::npos;
         at = hit + from.size()) {
      RETORT_TRY(spend(to.size() + 1));
      out.append(s, at, hit - at).append(to);
    }
    return text(out.append(s, at));
  }

  Result<Value> join(const Value& items, const std::string& mark) {
    std::string out;
    bool first = true;
    for (const Value& item : RETORT_TRY(sequence(items))) {
      if (!first) out += mark;
      first = false;
      out += to_text(item);
      RETORT_TRY(spend(mark.size() + 1));
      if (out.size() > kMaxWork) return error("the chat template takes too long");
    }
    return text(std::move(out));
  }

  Result<Value> items(const Dict& dict) {
    RETORT_TRY(spend(2 * kTextWork * dict.members.size()));
    List out;
    for (const auto& [name, value] : dict.members)
      out.push_back(RETORT_TRY(placed(Value::of(List{Value::of(name), value}))));
    return list(std::move(out));
  }

  // ---- filters and tests ----

  Result<Value> filter(const std::string& name, const Value& base, const Arguments& given) {
    const auto as_text = [&] { return to_text(base); };
    if (name == "trim") {
      const Value* of = given.get(0, "chars");
      return text(strip(as_text(), of == nullptr ? nullptr : of->text(), true, true));
    }
    if (name == "tojson") {
      const Value* indent = given.get(0, "indent");
      RETORT_TRY(weigh(base));
      return text(
          to_json_text(base, indent != nullptr && indent->integer() != nullptr
                                 ? static_cast<int>(std::clamp<std::int64_t>(*indent->integer(), 0, 16))
                                 : -1));
    }
    if (name == "length" || name == "count") {
      if (base.text() != nullptr)
        return Value::of(static_cast<std::int64_t>(RETORT_TRY(characters(*base.text())).size() - 1));
      if (base.list() != nullptr) return Value::of(static_cast<std::int64_t>(base.list()->size()));
      if (base.dict() != nullptr) return Value::of(static_cast<std::int64_t>(base.dict()->members.size()));
      if (base.undefined()) return Value::of(std::int64_t{0});
      return error("a value of type {} has no length", base.type());
    }
    if (name == "upper") return text(mapped(as_text(), upper));
    if (name == "lower") return text(mapped(as_text(), lower));
    if (name == "title" || name == "capitalize") return text(title(as_text(), name == "title"));
    if (name == "string" || name == "safe") return name == "safe" ? Result<Value>(base) : text(as_text());
    if (name == "default" || name == "d") {
      const Value *fallback = given.get(0, "default_value"), *falsy = given.get(1, "boolean");
      const bool use = base.undefined() || (falsy != nullptr && falsy->truth() && !base.truth());
      if (!use) return base;
      return fallback == nullptr ? Value::of(std::string()) : *fallback;
    }
    if (name == "join") {
      const Value* mark = given.get(0, "d");
      const Value* member = given.get(1, "attribute");
      if (member == nullptr) return join(base, mark == nullptr ? "" : to_text(*mark));
      List out;
      for (const Value& part : RETORT_TRY(sequence(base))) out.push_back(RETORT_TRY(item(part, *member)));
      return join(RETORT_TRY(list(std::move(out))), mark == nullptr ? "" : to_text(*mark));
    }
    if (name == "first" || name == "last") {
      const List all = RETORT_TRY(sequence(base));
      if (all.empty()) return Value{Value::Undefined{name}};
      return name == "first" ? all.front() : all.back();
    }
    if (name == "list") return list(RETORT_TRY(sequence(base)));
    if (name == "reverse") {
      List all = RETORT_TRY(sequence(base));
      std::reverse(all.begin(), all.end());
      if (base.text() != nullptr) return join(RETORT_TRY(list(std::move(all))), "");
      return list(std::move(all));
    }
    if (name == "unique") {
      List out;
      for (Value& part : RETORT_TRY(sequence(base))) {
        RETORT_TRY(spend(out.size()));
        if (std::none_of(out.begin(), out.end(), [&](const Value& seen) { return equal(seen, part); }))
          out.push_back(std::move(part));
      }
      return list(std::move(out));
    }
    if (name == "items" || name == "dictsort") {
      if (base.undefined()) return list({});
      if (base.dict() == nullptr) return error("'{}' of a value of type {}", name, base.type());
      Dict dict = *base.dict();
      if (name == "dictsort")
        std::stable_sort(dict.members.begin(), dict.members.end(), [](const auto& a, const auto& b) {
          return mapped(a.first, lower) < mapped(b.first, lower);
        });
      return items(dict);
    }
    if (name == "replace") {
      const Value *from = given.get(0, "old"), *to = given.get(1, "new");
      if (from == nullptr || to == nullptr) return error("replace takes two texts");
      return replace(as_text(), to_text(*from), to_text(*to), given.get(2, "count"));
    }
    if (name == "int" || name == "float") {
      double number = 0;
      if (const std::string* s = base.text()) {
        char* end = nullptr;
        number = std::strtod(s->c_str(), &end);
        if (s->empty() || *end != '\0') number = 0;
      } else if (!base.number(number)) {
        number = 0;
      }
      if (name == "float") return Value::of(number);
      if (base.integer() != nullptr) return base;
      return Value::of(std::abs(number) < 9e18 ? static_cast<std::int64_t>(number) : std::int64_t{0});
    }
    if (name == "abs") {
      double number = 0;
      if (!base.number(number)) return error("'abs' of a value of type {}", base.type());
      if (base.integer() != nullptr && *base.integer() != INT64_MIN)
        return Value::of(std::abs(*base.integer()));
      return Value::of(std::abs(number));
    }
    if (name == "escape" || name == "e") {
      std::string out;
      for (const char c : as_text())
        out += c == '&'    ? "&amp;"
               : c == '<'  ? "&lt;"
               : c == '>'  ? "&gt;"
               : c == '"'  ? "&#34;"
               : c == '\'' ? "&#39;"
                           : std::string(1, c);
      return text(std::move(out));
    }
    if (name == "indent") return indent(as_text(), given);
    if (name == "map") return map(base, given);
    if (name == "select" || name == "reject" || name == "selectattr" || name == "rejectattr")
      return select(name, base, given);
    return fail(ErrorCode::kUnsupported, fmt::format("{}:{}", where_, line_),
                "the filter '{}' is not supported", name);
  }

  Result<Value> indent(const std::string& whole, const Arguments& given) {
    const Value *width = given.get(0, "width"), *first = given.get(1, "first"),
                *blank = given.get(2, "blank");
    const std::int64_t spaces = width != nullptr && width->integer() != nullptr ? *width->integer() : 4;
    const std::string margin =
        width != nullptr && width->text() != nullptr
            ? *width->text()
            : std::string(static_cast<std::size_t>(std::clamp<std::int64_t>(spaces, 0, 256)), ' ');
    std::string out;
    bool at_first = true;
    for (std::size_t at = 0; at <= whole.size();) {
      const std::size_t end = std::min(whole.find('\n', at), whole.size());
      const bool empty = end == at;
      RETORT_TRY(spend(margin.size() + 1));
      if (at_first ? first != nullptr && first->truth() : !empty || (blank != nullptr && blank->truth()))
        out += margin;
      out.append(whole, at, end - at);
      if (end < whole.size()) out += '\n';
      at_first = false;
      at = end + 1;
    }
    return text(std::move(out));
  }

  Result<Value> map(const Value& base, const Arguments& given) {
    List out;
    const Value *member = given.get(SIZE_MAX, "attribute"), *other = given.get(SIZE_MAX, "default");
    const Value* by = given.get(0);
    if (member == nullptr && (by == nullptr || by->text() == nullptr))
      return error("map takes an attribute or a filter");
    for (const Value& part : RETORT_TRY(sequence(base))) {
      if (member != nullptr) {
        Value found = RETORT_TRY(item(part, *member));
        out.push_back(found.undefined() && other != nullptr ? *other : std::move(found));
      } else {
        Arguments rest = given;
        rest.positional.erase(rest.positional.begin());
        out.push_back(RETORT_TRY(filter_within(*by->text(), part, rest)));
      }
    }
    return list(std::move(out));
  }

  /// A filter that names another: map('map', 'map', …) nests.
  Result<Value> filter_within(const std::string& name, const Value& base, const Arguments& given) {
    const Nest nest(nesting_);
    if (nesting_ > kMaxNesting) return error("the chat template is nested too deeply");
    RETORT_TRY(spend(1));
    return filter(name, base, given);
  }

  Result<Value> select(const std::string& name, const Value& base, const Arguments& given) {
    const bool by_attribute = name.ends_with("attr"), keep = name.starts_with("select");
    std::vector<Value> rest = given.positional;
    Value member;
    if (by_attribute) {
      if (rest.empty()) return error("{} takes an attribute", name);
      member = rest.front();
      rest.erase(rest.begin());
    }
    std::string test_name;
    if (!rest.empty()) {
      test_name = to_text(rest.front());
      rest.erase(rest.begin());
    }
    List out;
    for (Value& part : RETORT_TRY(sequence(base))) {
      const Value judged = by_attribute ? RETORT_TRY(item(part, member)) : part;
      RETORT_TRY(spend(1));
      const bool holds = test_name.empty() ? judged.truth() : RETORT_TRY(test(test_name, judged, rest));
      if (holds == keep) out.push_back(std::move(part));
    }
    return list(std::move(out));
  }

  Result<bool> test(const std::string& name, const Value& value, const std::vector<Value>& arguments) {
    if (name == "defined") return !value.undefined();
    if (name == "undefined") return value.undefined();
    if (name == "none") return std::holds_alternative<Value::None>(value.is);
    if (name == "string") return value.text() != nullptr;
    if (name == "mapping") return value.dict() != nullptr && !value.dict()->is_namespace;
    if (name == "sequence" || name == "iterable")
      return value.list() != nullptr || value.text() != nullptr ||
             (value.dict() != nullptr && !value.dict()->is_namespace);
    if (name == "boolean") return std::holds_alternative<bool>(value.is);
    if (name == "true" || name == "false") {
      const bool* flag = std::get_if<bool>(&value.is);
      return flag != nullptr && *flag == (name == "true");
    }
    if (name == "integer") return value.integer() != nullptr;
    if (name == "float") return std::holds_alternative<double>(value.is);
    if (double number = 0; name == "number") return value.number(number);
    if (name == "callable")
      return std::holds_alternative<Value::Macro>(value.is) ||
             std::holds_alternative<Value::Function>(value.is);
    if (name == "odd" || name == "even") {
      if (value.integer() == nullptr) return error("'{}' of a value of type {}", name, value.type());
      return (*value.integer() % 2 != 0) == (name == "odd");
    }
    if (name == "lower" || name == "upper") {
      const std::string text = to_text(value);
      return std::any_of(text.begin(), text.end(), [](char c) { return is_lower(c) || is_upper(c); }) &&
             std::none_of(text.begin(), text.end(), name == "lower" ? is_upper : is_lower);
    }
    const bool compares = name == "equalto" || name == "eq" || name == "==" || name == "sameas" ||
                          name == "ne" || name == "in" || name == "divisibleby" || name == "gt" ||
                          name == "lt" || name == "ge" || name == "le";
    if (!compares)
      return fail(ErrorCode::kUnsupported, fmt::format("{}:{}", where_, line_),
                  "the test '{}' is not supported", name);
    if (arguments.empty()) return error("the test '{}' takes an argument", name);
    const Value& other = arguments[0];
    if (name == "in") return contains(other, value);
    if (name == "divisibleby") {
      if (value.integer() == nullptr || other.integer() == nullptr || *other.integer() == 0)
        return error("the test 'divisibleby' takes integers");
      return *other.integer() == -1 || *value.integer() % *other.integer() == 0;
    }
    RETORT_TRY(weigh(value));
    if (name == "ne") return !equal(value, other);
    if (name.size() != 2 || name == "eq" || name == "==") return equal(value, other);
    double x = 0, y = 0;
    if (!value.number(x) || !other.number(y)) return error("the test '{}' takes numbers", name);
    return name == "gt" ? x > y : name == "lt" ? x < y : name == "ge" ? x >= y : x <= y;
  }

  std::string_view where_;
  std::deque<Scope> scopes_;
  std::uint64_t work_ = 0;
  std::uint32_t nesting_ = 0, line_ = 0;
};

}  // namespace

struct ChatTemplate::Program {
  std::string where;
  std::vector<Statement> statements;
};

Result<ChatTemplate> ChatTemplate::parse(std::string_view source, std::string_view where) {
  auto program = std::make_shared<Program>();
  program->where = where;
  program->statements = RETORT_TRY(parse_template(source, where));
  return ChatTemplate(std::move(program));
}

Result<std::string> ChatTemplate::render(const json::object& variables) const {
  return Interpreter(program_->where).run(program_->statements, variables);
}

}  // namespace retort
