#include "common/core/documents.h"

#include "common/core/file.h"
#include "common/core/json.h"

namespace retort {

DocumentFormat document_format(const std::filesystem::path& file) {
  return file.extension() == ".txt" ? DocumentFormat::kPlainText : DocumentFormat::kJsonLines;
}

namespace {
/// "text", or "prompt" and "completion" as they follow on each other.
Result<std::string> document_in(const json::object& line, const std::string& place) {
  if (json_has(line, "prompt") && !json_has(line, "text"))
    return RETORT_TRY(json_string(line, "prompt", place)) +
           RETORT_TRY(json_string(line, "completion", place));
  if (json_has(line, "messages") && !json_has(line, "text"))
    return fail(
        ErrorCode::kUnsupported, place,
        "'messages' are text only after a model's chat template: write what it makes of them into 'text'");
  return json_string(line, "text", place);
}
}  // namespace

Result<std::uint64_t> visit_documents(std::string_view text, DocumentFormat format, const std::string& where,
                                      const std::function<bool(std::string document)>& visit) {
  const auto blank = [](std::string_view part) {
    return part.find_first_not_of(" \t\r\n") == std::string_view::npos;
  };
  std::uint64_t found = 0, number = 0;
  bool more = true;
  std::string paragraph;
  const auto give = [&](std::string document) {
    if (!more || blank(document)) return;
    ++found;
    more = visit(std::move(document));
  };
  for (std::size_t at = 0; at < text.size() && more;) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    std::string_view line = text.substr(at, end - at);
    at = end + 1;
    ++number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (format == DocumentFormat::kJsonLines) {
      if (blank(line)) continue;
      const std::string place = fmt::format("{}:{}", where, number);
      const json::value value = RETORT_TRY(parse_json(line, place));
      give(RETORT_TRY(document_in(*RETORT_TRY(as_object(value, place)), place)));
    } else if (blank(line)) {
      give(std::exchange(paragraph, {}));
    } else {
      paragraph.append(line).push_back('\n');
    }
  }
  give(std::move(paragraph));
  if (found == 0)
    return fail(ErrorCode::kInvalid, where, "holds no documents; it should have {}",
                format == DocumentFormat::kPlainText ? "paragraphs of text" : "one {\"text\": …} a line");
  return found;
}

Result<std::vector<std::string>> read_documents(const std::filesystem::path& file, std::uint64_t limit) {
  const MappedFile mapped = RETORT_TRY(MappedFile::open(file));
  const std::string_view text(reinterpret_cast<const char*>(mapped.bytes().data()), mapped.bytes().size());
  std::vector<std::string> documents;
  RETORT_TRY(visit_documents(text, document_format(file), file.string(), [&](std::string document) {
    documents.push_back(std::move(document));
    return limit == 0 || documents.size() < limit;
  }));
  return documents;
}

}  // namespace retort
