#include "coordinator/worker/data.h"

#include <algorithm>
#include <numeric>

#include "common/core/file.h"
#include "common/core/json.h"
#include "common/core/random.h"

namespace retort {

Result<std::vector<std::string>> read_documents(const DataFile& data) {
  const std::string where = data.file.string();
  const MappedFile file = RETORT_TRY(MappedFile::open(data.file));
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  const bool plain = data.file.extension() == ".txt";
  std::vector<std::string> documents;
  std::string paragraph;
  const auto full = [&] { return data.limit_documents != 0 && documents.size() >= data.limit_documents; };
  const auto flush = [&] {
    if (!paragraph.empty() && !full()) documents.push_back(std::move(paragraph));
    paragraph.clear();
  };
  std::size_t number = 0;
  for (std::size_t at = 0; at < text.size() && !full();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = text.substr(at, end - at);
    at = end + 1;
    ++number;
    const bool blank = line.find_first_not_of(" \t\r") == std::string_view::npos;
    if (plain) {
      if (blank)
        flush();
      else
        paragraph.append(line).push_back('\n');
    } else if (!blank) {
      const std::string place = fmt::format("{}:{}", where, number);
      const json::value value = RETORT_TRY(parse_json(line, place));
      const json::object& object = *RETORT_TRY(as_object(value, place));
      documents.push_back(RETORT_TRY(json_string(object, "text", place)));
      if (documents.back().empty()) documents.pop_back();
    }
  }
  flush();
  if (documents.empty())
    return fail(ErrorCode::kInvalid, where, "holds no documents; it should have {}",
                plain ? "paragraphs of text" : "one {\"text\": …} a line");
  return documents;
}

std::vector<TokenId> document_tokens(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<TokenId> ids = tokenizer.encode(text, false);
  if (tokenizer.bos() >= 0) ids.insert(ids.begin(), tokenizer.bos());
  if (tokenizer.eos() >= 0) ids.push_back(tokenizer.eos());
  return ids;
}

Result<TokenStream> TokenStream::make(const std::vector<std::string>& documents, const Tokenizer& tokenizer) {
  TokenStream stream;
  for (const std::string& text : documents) {
    const std::vector<TokenId> ids = document_tokens(tokenizer, text);
    const bool shared = !stream.tokens_.empty() && !ids.empty() && tokenizer.bos() == tokenizer.eos() &&
                        ids.front() == tokenizer.bos();
    stream.tokens_.insert(stream.tokens_.end(), ids.begin() + (shared ? 1 : 0), ids.end());
  }
  if (stream.tokens_.size() < 3)
    return fail(ErrorCode::kInvalid, "training data", "holds only {} tokens, too few to learn from",
                stream.tokens_.size());
  return stream;
}

std::uint32_t TokenStream::window_length(std::uint32_t wanted) const {
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(wanted, tokens_.size() - 1));
}

void TokenStream::window(std::uint64_t seed, std::uint64_t index, std::uint32_t length, std::int64_t* out) {
  const std::uint64_t windows = (tokens_.size() - 1) / length;
  const std::uint64_t epoch = index / windows;
  if (epoch != epoch_ || seed != seed_ || order_.size() != windows) {
    order_.resize(windows);
    std::iota(order_.begin(), order_.end(), 0u);
    SeededRandom random(seed * 0x9E3779B97F4A7C15ull + epoch);
    for (std::uint64_t i = windows - 1; i > 0; --i) std::swap(order_[i], order_[random.next_u64() % (i + 1)]);
    epoch_ = epoch;
    seed_ = seed;
  }
  const auto first = tokens_.begin() + static_cast<std::ptrdiff_t>(order_[index % windows]) * length;
  std::copy(first, first + length + 1, out);
}

}  // namespace retort
