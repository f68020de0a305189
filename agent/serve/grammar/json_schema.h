#pragma once

#include <memory>
#include <string_view>

#include "agent/serve/grammar/network.h"
#include "common/core/json.h"

namespace retort::grammar {

struct SchemaOptions {
  bool ascii = false;            ///< the vocabulary cannot write other bytes: escapes instead
  std::uint32_t max_depth = 24;  ///< levels of objects and arrays
};

/// The JSON texts that a schema (JSON Schema 2020-12, the part in docs/serve.md) accepts and that we write:
/// members in the schema's order, white space in few places, numbers of at most 15 digits before the point
/// and after it. Every text of the network is valid by the schema; not every valid text is one of the
/// network's. kUnsupported and kInvalid name the keyword and its path.
Result<std::shared_ptr<const Network>> compile_schema(const json::value& schema,
                                                      const SchemaOptions& options = {});
/// Any object.
Result<std::shared_ptr<const Network>> any_object(const SchemaOptions& options = {});

/// For the schema compiler: adds to `network`, from `from` to `to`, JSON strings' contents (between the
/// quotes) that match the regular expression.
Result<void> compile_pattern(Network& network, NodeId from, NodeId to, std::string_view pattern, bool ascii);

}  // namespace retort::grammar
