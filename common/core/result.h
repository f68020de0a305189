#pragma once

#include <fmt/format.h>

#include <tl/expected.hpp>
#include <type_traits>
#include <utility>

#include "common/core/error.h"

namespace retort {

/// A value, or the Error that stands in its place. Ignoring one is a compile error.
template <typename T>
class [[nodiscard]] Result : public tl::expected<T, Error> {
 public:
  using tl::expected<T, Error>::expected;

  /// The value, moved out; only where there is one. For RETORT_TRY (tl::expected<void> has no value()).
  T take() && {
    if constexpr (!std::is_void_v<T>) return std::move(**this);
  }
};

/// What a failing function returns: `return fail(ErrorCode::kInvalid, "file.gguf", "{} tensors", n);`
template <typename... Args>
tl::unexpected<Error> fail(ErrorCode code, std::string where, fmt::format_string<Args...> format,
                           Args&&... args) {
  return tl::unexpected<Error>(
      Error{code, fmt::format(format, std::forward<Args>(args)...), std::move(where)});
}
/// Hands an error on, unchanged.
inline tl::unexpected<Error> fail(Error error) { return tl::unexpected<Error>(std::move(error)); }

/// An I/O failure with errno's text: fail_errno("path", "cannot open"). A full disk becomes kOutOfBudget, a
/// missing file kNotFound, a path that cannot be one kInvalid, the rest kIo.
tl::unexpected<Error> fail_errno(std::string where, std::string_view what);

}  // namespace retort

/// The value of a Result, or return its error from the enclosing function. Uses may nest.
#define RETORT_TRY(expression) RETORT_TRY_NAMED(expression, RETORT_TRY_JOIN(retort_try_, __COUNTER__))
#define RETORT_TRY_JOIN(a, b) RETORT_TRY_JOIN_NOW(a, b)
#define RETORT_TRY_JOIN_NOW(a, b) a##b
#define RETORT_TRY_NAMED(expression, name)                     \
  __extension__({                                              \
    auto name = (expression);                                  \
    if (!name) return ::retort::fail(std::move(name).error()); \
    std::move(name).take();                                    \
  })
