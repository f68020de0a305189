#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "agent/serve/chat/value.h"

/// The syntax tree of a chat template.
namespace retort::chat {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

struct Expression {
  enum Kind {
    kConstant,
    kName,       ///< name
    kList,       ///< arguments
    kDict,       ///< arguments: key, value, key, value, …
    kAttribute,  ///< arguments[0].name
    kItem,       ///< arguments[0][arguments[1]]
    kSlice,      ///< arguments[0][arguments[1]:arguments[2]:arguments[3]], null where left out
    kCall,       ///< arguments[0](arguments[1…], named)
    kFilter,     ///< arguments[0] | name(arguments[1…], named)
    kTest,       ///< arguments[0] is name(arguments[1…])
    kUnary,      ///< name: "-", "+", "not"
    kBinary,     ///< name: the operator; comparisons do not chain
    kTernary,    ///< arguments[0] if arguments[1] else arguments[2] (null: undefined)
  } kind = kConstant;
  std::uint32_t line = 0, depth = 1;
  std::string name;
  Value constant;
  std::vector<ExpressionPtr> arguments;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
};

struct Statement {
  enum Kind {
    kText,    ///< text
    kOutput,  ///< expression
    kIf,      ///< branches: condition (null: else) and body
    kFor,     ///< names in expression [if condition]: branches[0] the body, branches[1] the else
    kSet,     ///< names = expression, or (null) the text of branches[0]; with `attribute`: names[0].attribute
    kMacro,   ///< names[0](parameters): branches[0]
    kBreak,
    kContinue,
  } kind = kText;
  struct Branch {
    ExpressionPtr condition;
    std::vector<Statement> body;
  };
  std::uint32_t line = 0;
  std::string text, attribute;
  ExpressionPtr expression, condition;
  std::vector<std::string> names;
  std::vector<std::pair<std::string, ExpressionPtr>> parameters;  ///< null: no default
  std::vector<Branch> branches;
};

/// Counts a level for as long as it lives.
class Nest {
 public:
  explicit Nest(std::uint32_t& level) : level_(level) { ++level_; }
  ~Nest() { --level_; }
  Nest(const Nest&) = delete;
  Nest& operator=(const Nest&) = delete;

 private:
  std::uint32_t& level_;
};

Result<std::vector<Statement>> parse_template(std::string_view source, std::string_view where);

}  // namespace retort::chat
