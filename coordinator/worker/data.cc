#include "coordinator/worker/data.h"

#include <algorithm>
#include <numeric>

#include "common/core/documents.h"
#include "common/core/random.h"

namespace retort {
namespace {

/// A document's tokens as they follow on those before, whose last is `last` (−1: none).
std::vector<TokenId> following(const Tokenizer& tokenizer, const std::string& text, TokenId last) {
  std::vector<TokenId> ids = document_tokens(tokenizer, text);
  if (last >= 0 && !ids.empty() && tokenizer.bos() == tokenizer.eos() && ids.front() == tokenizer.bos())
    ids.erase(ids.begin());
  return ids;
}

Result<void> enough(std::uint64_t tokens) {
  if (tokens >= 3) return {};
  return fail(ErrorCode::kInvalid, "training data", "holds only {} tokens, too few to learn from", tokens);
}

}  // namespace

std::vector<TokenId> document_tokens(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<TokenId> ids = tokenizer.encode(text, false);
  if (tokenizer.bos() >= 0) ids.insert(ids.begin(), tokenizer.bos());
  if (tokenizer.eos() >= 0) ids.push_back(tokenizer.eos());
  return ids;
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
    const std::vector<TokenId> ids =
        following(tokenizer, text, stream.held_.empty() ? -1 : stream.held_.back());
    stream.held_.insert(stream.held_.end(), ids.begin(), ids.end());
  }
  RETORT_TRY(enough(stream.held_.size()));
  stream.tokens_ = stream.held_;
  return stream;
}

Result<TokenStream> TokenStream::make(const std::filesystem::path& file, std::uint64_t limit,
                                      const Tokenizer& tokenizer, const std::filesystem::path& scratch) {
  const MappedFile text = RETORT_TRY(MappedFile::open(file));
  const File out = RETORT_TRY(File::open_write(scratch, true));
  constexpr std::size_t kBlock = 1 << 18;
  std::vector<TokenId> block;
  std::uint64_t written = 0, documents = 0;
  TokenId last = -1;
  Result<void> wrote;
  const auto flush = [&] {
    if (wrote)
      wrote = out.write_all_at(written,
                               {reinterpret_cast<const char*>(block.data()), block.size() * sizeof(TokenId)});
    written += block.size() * sizeof(TokenId);
    block.clear();
    text.drop_pages();
  };
  const Result<std::uint64_t> read =
      visit_documents({reinterpret_cast<const char*>(text.bytes().data()), text.bytes().size()},
                      document_format(file), file.string(), [&](const std::string& document) {
                        const std::vector<TokenId> ids = following(tokenizer, document, last);
                        if (!ids.empty()) last = ids.back();
                        block.insert(block.end(), ids.begin(), ids.end());
                        if (block.size() >= kBlock) flush();
                        return wrote.has_value() && (limit == 0 || ++documents < limit);
                      });
  flush();
  TokenStream stream;
  Result<MappedFile> mapped = MappedFile::open(scratch);
  std::error_code ignored;
  std::filesystem::remove(scratch, ignored);
  if (!read) return fail(read.error());
  if (!wrote) return fail(wrote.error());
  stream.mapped_ = RETORT_TRY(std::move(mapped));
  stream.tokens_ = {reinterpret_cast<const TokenId*>(stream.mapped_.bytes().data()),
                    stream.mapped_.bytes().size() / sizeof(TokenId)};
  RETORT_TRY(enough(stream.tokens_.size()));
  return stream;
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
