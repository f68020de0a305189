#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "common/core/result.h"

namespace retort {

/// How documents stand in a file: an object a line with a member "text", or with "prompt" and "completion"
/// that follow on each other, or paragraphs between blank lines.
enum class DocumentFormat { kJsonLines, kPlainText };

/// By the ending: .txt is plain text, anything else JSON lines.
DocumentFormat document_format(const std::filesystem::path& file);

/// Hands every document that is not blank to `visit`, in order, until it answers false; how many there were.
/// Lines end at LF or CRLF. A paragraph keeps its line breaks, as LF, the last one too. kInvalid names the
/// line (as `where`:N) of JSON that is wrong, or says that there is no document. Thread: any.
Result<std::uint64_t> visit_documents(std::string_view text, DocumentFormat format, const std::string& where,
                                      const std::function<bool(std::string document)>& visit);

/// The first `limit` documents of a file (0: all).
Result<std::vector<std::string>> read_documents(const std::filesystem::path& file, std::uint64_t limit = 0);

}  // namespace retort
