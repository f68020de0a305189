#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "common/core/json.h"
#include "common/core/result.h"

namespace retort {

/// A chat template, as Hugging Face's tokenizers and GGUF's tokenizer.chat_template hold it: Jinja, with
/// blocks trimmed (trim_blocks, lstrip_blocks) and nothing escaped. Done are the parts of the language that
/// templates of published models use: output, if, for (with else, filter, loop variables, break, continue),
/// set (also of a namespace's members and of blocks), macros, comments; Python's operators, slices, ternaries
/// and string methods; the usual filters and tests. Tuples are lists. Templates come from outside: steps,
/// nesting and output are bounded, and none reaches anything but the variables that it is given. Thread: any.
class ChatTemplate {
 public:
  /// kInvalid names the line; kUnsupported the statement that we do not do.
  static Result<ChatTemplate> parse(std::string_view source, std::string_view where);

  /// With `variables` as globals ("messages", "add_generation_prompt", "bos_token", …). kInvalid: what the
  /// template itself refuses by raise_exception(), and whatever goes wrong while it runs, with the line.
  Result<std::string> render(const json::object& variables) const;

  /// Opaque.
  struct Program;

 private:
  explicit ChatTemplate(std::shared_ptr<const Program> program) : program_(std::move(program)) {}
  std::shared_ptr<const Program> program_;
};

}  // namespace retort
