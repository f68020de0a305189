#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "common/core/json.h"
#include "common/core/result.h"

/// What a chat template computes with: Python's values, as far as Jinja shows them.
namespace retort::chat {

struct Value;
struct Statement;
using List = std::vector<Value>;

/// Keys in the order in which they came. Small: members are looked for one by one.
struct Dict {
  std::vector<std::pair<std::string, Value>> members;
  bool is_namespace = false;  ///< its members can be set; never kept inside another value (no cycles)
  const Value* find(std::string_view key) const;
};

/// Lists, texts and plain dictionaries never change once they are made, and are shared.
struct Value {
  struct Undefined {
    std::string name;  ///< for messages
  };
  struct None {};
  struct Macro {
    const Statement* definition = nullptr;
  };
  struct Function {
    enum Which { kRange, kNamespace, kDict, kRaise, kNow } which;
  };
  std::variant<Undefined, None, bool, std::int64_t, double, std::shared_ptr<const std::string>,
               std::shared_ptr<const List>, std::shared_ptr<Dict>, Macro, Function>
      is = Undefined{};
  std::uint32_t depth = 0;  ///< of containers within it

  static Value none() { return {None{}}; }
  static Value of(bool b) { return {b}; }
  static Value of(std::int64_t i) { return {i}; }
  static Value of(double d) { return {d}; }
  static Value of(std::string s) { return {std::make_shared<const std::string>(std::move(s))}; }
  /// kInvalid: nested too deeply, or a namespace within it.
  static Result<Value> of(List list);
  static Result<Value> of(Dict dict);
  static Result<Value> from_json(const json::value& value);

  bool undefined() const { return std::holds_alternative<Undefined>(is); }
  bool none_or_undefined() const { return undefined() || std::holds_alternative<None>(is); }
  const std::string* text() const;
  const List* list() const;
  Dict* dict() const;
  const std::int64_t* integer() const { return std::get_if<std::int64_t>(&is); }
  bool number(double& out) const;  ///< integers, floats and booleans
  bool truth() const;
  /// "str", "int", …, for messages.
  std::string_view type() const;
};

bool equal(const Value& a, const Value& b);
/// As Python's str(): what an output statement writes; `quoted`: as repr().
std::string to_text(const Value& value, bool quoted = false);
/// As Python's json.dumps(value, ensure_ascii=False); `indent` < 0: on one line.
std::string to_json_text(const Value& value, int indent);

}  // namespace retort::chat
