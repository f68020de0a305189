#include "coordinator/worker/data.h"

#include <algorithm>
#include <atomic>
#include <future>
#include <numeric>
#include <utility>

#include "common/core/documents.h"
#include "common/core/random.h"

namespace retort {
namespace {

/// Between bos and eos, as far as there are any.
std::vector<TokenId> framed(const Tokenizer& tokenizer, std::vector<TokenId> ids) {
  if (tokenizer.bos() >= 0) ids.insert(ids.begin(), tokenizer.bos());
  if (tokenizer.eos() >= 0) ids.push_back(tokenizer.eos());
  return ids;
}

/// The same as it follows on other documents, where there are `any`.
std::vector<TokenId> following(const Tokenizer& tokenizer, std::vector<TokenId> ids, bool any) {
  ids = framed(tokenizer, std::move(ids));
  if (any && !ids.empty() && tokenizer.bos() == tokenizer.eos() && ids.front() == tokenizer.bos())
    ids.erase(ids.begin());
  return ids;
}

Result<void> enough(std::uint64_t tokens) {
  if (tokens >= 3) return {};
  return fail(ErrorCode::kInvalid, "training data", "holds only {} tokens, too few to learn from", tokens);
}

}  // namespace

std::vector<TokenId> document_tokens(const Tokenizer& tokenizer, const std::string& text) {
  return framed(tokenizer, tokenizer.encode(text, false));
}

Result<void> visit_tokens(const std::filesystem::path& file, std::uint64_t limit, const Tokenizer& tokenizer,
                          int threads,
                          const std::function<Result<void>(const std::vector<TokenId>&)>& visit) {
  constexpr std::size_t kBytes = 1 << 20;  // of text at a time
  const MappedFile text = RETORT_TRY(MappedFile::open(file));
  std::vector<std::string> documents;
  std::size_t bytes = 0;
  std::uint64_t seen = 0;
  Result<void> visited;
  const auto encode = [&] {
    std::vector<std::vector<TokenId>> ids(documents.size());
    std::atomic<std::size_t> next = 0;
    const auto work = [&] {
      for (std::size_t i; (i = next++) < documents.size();) ids[i] = tokenizer.encode(documents[i], false);
    };
    std::vector<std::future<void>> others;
    for (int i = 1; i < threads && documents.size() > 1; ++i)
      others.push_back(std::async(std::launch::async, work));
    work();
    for (std::future<void>& other : others) other.get();
    for (std::size_t i = 0; i < ids.size() && visited; ++i) visited = visit(ids[i]);
    documents.clear();
    bytes = 0;
    text.drop_pages();
  };
  RETORT_TRY(visit_documents({reinterpret_cast<const char*>(text.bytes().data()), text.bytes().size()},
                             document_format(file), file.string(), [&](std::string document) {
                               bytes += document.size();
                               documents.push_back(std::move(document));
                               if (bytes >= kBytes) encode();
                               return visited.has_value() && (limit == 0 || ++seen < limit);
                             }));
  encode();
  return visited;
}

std::vector<std::uint32_t> shuffled(std::uint64_t count, std::uint64_t seed, std::uint64_t epoch) {
  std::vector<std::uint32_t> order(count);
  std::iota(order.begin(), order.end(), 0u);
  SeededRandom random(seed * 0x9E3779B97F4A7C15ull + epoch);
  for (std::uint64_t i = count - 1; i > 0; --i) std::swap(order[i], order[random.next_u64() % (i + 1)]);
  return order;
}

Result<void> same_vocabulary(const Tokenizer& student, const Tokenizer& teacher, const std::string& where) {
  if (student.vocabulary_size() != teacher.vocabulary_size())
    return fail(
        ErrorCode::kInvalid, where,
        "the student's tokenizer has {} tokens, the teacher's {}: a student can only learn from a teacher "
        "that shares its vocabulary",
        student.vocabulary_size(), teacher.vocabulary_size());
  for (TokenId id = 0; id < static_cast<TokenId>(student.vocabulary_size()); ++id)
    if (student.piece(id) != teacher.piece(id))
      return fail(ErrorCode::kInvalid, where,
                  "token {} is '{}' in the student's tokenizer and '{}' in the teacher's: a student can only "
                  "learn from a teacher that shares its vocabulary",
                  id, student.piece(id), teacher.piece(id));
  return {};
}

Result<TokenStream> TokenStream::make(const std::vector<std::string>& documents, const Tokenizer& tokenizer) {
  TokenStream stream;
  for (const std::string& text : documents) {
    const auto ids = following(tokenizer, tokenizer.encode(text, false), !stream.held_.empty());
    stream.held_.insert(stream.held_.end(), ids.begin(), ids.end());
  }
  RETORT_TRY(enough(stream.held_.size()));
  stream.tokens_ = stream.held_;
  return stream;
}

Result<TokenStream> TokenStream::make(const std::filesystem::path& file, std::uint64_t limit,
                                      const Tokenizer& tokenizer, const std::filesystem::path& scratch,
                                      int threads) {
  const File out = RETORT_TRY(File::open_write(scratch, true));
  constexpr std::size_t kBlock = 1 << 18;
  std::vector<TokenId> block;
  std::uint64_t written = 0;
  const auto flush = [&]() -> Result<void> {
    const std::uint64_t at = std::exchange(written, written + block.size() * sizeof(TokenId));
    const Result<void> done =
        out.write_all_at(at, {reinterpret_cast<const char*>(block.data()), block.size() * sizeof(TokenId)});
    block.clear();
    return done;
  };
  Result<void> wrote = visit_tokens(
      file, limit, tokenizer, threads, [&](const std::vector<TokenId>& document) -> Result<void> {
        const auto ids = following(tokenizer, document, written > 0 || !block.empty());
        block.insert(block.end(), ids.begin(), ids.end());
        return block.size() >= kBlock ? flush() : Result<void>();
      });
  if (wrote) wrote = flush();
  TokenStream stream;
  Result<MappedFile> mapped = MappedFile::open(scratch);
  std::error_code ignored;
  std::filesystem::remove(scratch, ignored);
  if (!wrote) return fail(wrote.error());
  stream.mapped_ = RETORT_TRY(std::move(mapped));
  stream.tokens_ = {reinterpret_cast<const TokenId*>(stream.mapped_.bytes().data()),
                    stream.mapped_.bytes().size() / sizeof(TokenId)};
  RETORT_TRY(enough(stream.tokens_.size()));
  return stream;
}

std::vector<std::uint64_t> TokenStream::counts(std::size_t vocabulary) const {
  std::vector<std::uint64_t> out(vocabulary);
  for (const TokenId token : tokens_) ++out.at(static_cast<std::size_t>(token));
  return out;
}

std::uint32_t TokenStream::window_length(std::uint32_t wanted) const {
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(wanted, tokens_.size() - 1));
}

std::uint64_t TokenStream::window(std::uint64_t seed, std::uint64_t index, std::uint32_t length,
                                  std::int64_t* out) {
  const std::uint64_t windows = this->windows(length);
  const std::uint64_t epoch = index / windows;
  if (epoch != epoch_ || seed != seed_ || order_.size() != windows) {
    order_ = shuffled(windows, seed, epoch);
    epoch_ = epoch;
    seed_ = seed;
  }
  const std::uint64_t at = order_[index % windows];
  const auto first = tokens_.begin() + static_cast<std::ptrdiff_t>(at * length);
  std::copy(first, first + length + 1, out);
  return at;
}

}  // namespace retort
