#include "agent/serve/chat/value.h"

#include <algorithm>
#include <cmath>

namespace retort::chat {
namespace {

constexpr std::uint32_t kMaxDepth = 64;

Result<std::uint32_t> depth_around(std::uint32_t depth, const Value& child) {
  if (const Dict* dict = child.dict(); dict != nullptr && dict->is_namespace)
    return fail(ErrorCode::kInvalid, "", "a namespace cannot be part of another value");
  if (child.depth >= kMaxDepth)
    return fail(ErrorCode::kInvalid, "", "values are nested more than {} deep", kMaxDepth);
  return std::max(depth, child.depth + 1);
}

std::string number_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  std::string out = fmt::format("{}", value);
  if (out.find_first_of(".e") == std::string::npos) out += ".0";
  return out;
}

std::string quote(const std::string& text) {
  const char mark = text.find('\'') != std::string::npos && text.find('"') == std::string::npos ? '"' : '\'';
  std::string out(1, mark);
  for (const char c : text) {
    if (c == '\n')
      out += "\\n";
    else if (c == '\r')
      out += "\\r";
    else if (c == '\t')
      out += "\\t";
    else if (c == '\\' || c == mark)
      (out += '\\') += c;
    else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    else
      out += c;
  }
  return out + mark;
}

std::string json_quote(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\')
      (out += '\\') += c;
    else if (c == '\n')
      out += "\\n";
    else if (c == '\r')
      out += "\\r";
    else if (c == '\t')
      out += "\\t";
    else if (c == '\b')
      out += "\\b";
    else if (c == '\f')
      out += "\\f";
    else if (static_cast<unsigned char>(c) < 0x20)
      out += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
    else
      out += c;
  }
  return out + "\"";
}

void write_json(const Value& value, int indent, int level, std::string& out) {
  const auto line = [&](int at) {
    if (indent >= 0) out += "\n" + std::string(static_cast<std::size_t>(indent * at), ' ');
  };
  const auto items = [&](char open, char close, std::size_t count, const auto& item) {
    out += open;
    for (std::size_t i = 0; i < count; ++i) {
      if (i != 0) out += indent < 0 ? ", " : ",";
      line(level + 1);
      item(i);
    }
    if (count != 0) line(level);
    out += close;
  };
  if (const std::string* text = value.text()) {
    out += json_quote(*text);
  } else if (const List* list = value.list()) {
    items('[', ']', list->size(), [&](std::size_t i) { write_json((*list)[i], indent, level + 1, out); });
  } else if (const Dict* dict = value.dict()) {
    items('{', '}', dict->members.size(), [&](std::size_t i) {
      out += json_quote(dict->members[i].first) + ": ";
      write_json(dict->members[i].second, indent, level + 1, out);
    });
  } else if (const bool* flag = std::get_if<bool>(&value.is)) {
    out += *flag ? "true" : "false";
  } else if (value.integer() != nullptr || std::holds_alternative<double>(value.is)) {
    out += to_text(value);
  } else {
    out += "null";
  }
}

}  // namespace

const Value* Dict::find(std::string_view key) const {
  for (const auto& [name, value] : members)
    if (name == key) return &value;
  return nullptr;
}

Result<Value> Value::of(List list) {
  Value out{std::shared_ptr<const List>()};
  for (const Value& child : list) out.depth = RETORT_TRY(depth_around(out.depth, child));
  out.is = std::make_shared<const List>(std::move(list));
  return out;
}

Result<Value> Value::of(Dict dict) {
  Value out{std::shared_ptr<Dict>()};
  for (const auto& [name, child] : dict.members) out.depth = RETORT_TRY(depth_around(out.depth, child));
  out.is = std::make_shared<Dict>(std::move(dict));
  return out;
}

Result<Value> Value::from_json(const json::value& value) {
  switch (value.kind()) {
    case json::kind::null:
      return none();
    case json::kind::bool_:
      return of(value.get_bool());
    case json::kind::int64:
      return of(value.get_int64());
    case json::kind::uint64:
      return of(static_cast<double>(value.get_uint64()));  // beyond int64
    case json::kind::double_:
      return of(value.get_double());
    case json::kind::string:
      return of(std::string(value.get_string()));
    case json::kind::array: {
      List list;
      for (const json::value& item : value.get_array()) list.push_back(RETORT_TRY(from_json(item)));
      return of(std::move(list));
    }
    case json::kind::object: {
      Dict dict;
      for (const auto& member : value.get_object())
        dict.members.emplace_back(std::string(member.key()), RETORT_TRY(from_json(member.value())));
      return of(std::move(dict));
    }
  }
  return none();
}

const std::string* Value::text() const {
  const auto* p = std::get_if<std::shared_ptr<const std::string>>(&is);
  return p == nullptr ? nullptr : p->get();
}
const List* Value::list() const {
  const auto* p = std::get_if<std::shared_ptr<const List>>(&is);
  return p == nullptr ? nullptr : p->get();
}
Dict* Value::dict() const {
  const auto* p = std::get_if<std::shared_ptr<Dict>>(&is);
  return p == nullptr ? nullptr : p->get();
}

bool Value::number(double& out) const {
  if (const auto* i = integer())
    out = static_cast<double>(*i);
  else if (const auto* d = std::get_if<double>(&is))
    out = *d;
  else if (const auto* b = std::get_if<bool>(&is))
    out = *b ? 1 : 0;
  else
    return false;
  return true;
}

bool Value::truth() const {
  if (none_or_undefined()) return false;
  if (double n = 0; number(n)) return n != 0;
  if (const std::string* s = text()) return !s->empty();
  if (const List* l = list()) return !l->empty();
  if (const Dict* d = dict()) return d->is_namespace || !d->members.empty();
  return true;
}

std::string_view Value::type() const {
  constexpr std::string_view kNames[] = {"undefined", "None", "bool", "int",     "float",
                                         "str",       "list", "dict", "a macro", "a function"};
  return kNames[is.index()];
}

bool equal(const Value& a, const Value& b) {
  if (a.integer() != nullptr && b.integer() != nullptr) return *a.integer() == *b.integer();
  if (double x = 0, y = 0; a.number(x) && b.number(y)) return x == y;
  if (a.is.index() != b.is.index()) return false;
  if (const std::string* x = a.text()) return *x == *b.text();
  if (const List* x = a.list())
    return std::equal(x->begin(), x->end(), b.list()->begin(), b.list()->end(), equal);
  if (const Dict* x = a.dict()) {
    const Dict* y = b.dict();
    return x->members.size() == y->members.size() &&
           std::all_of(x->members.begin(), x->members.end(), [&](const auto& member) {
             const Value* other = y->find(member.first);
             return other != nullptr && equal(member.second, *other);
           });
  }
  return a.none_or_undefined();
}

std::string to_text(const Value& value, bool quoted) {
  if (const std::string* text = value.text()) return quoted ? quote(*text) : *text;
  if (value.undefined()) return quoted ? "Undefined" : "";
  if (const bool* flag = std::get_if<bool>(&value.is)) return *flag ? "True" : "False";
  if (const auto* integer = value.integer()) return std::to_string(*integer);
  if (const auto* number = std::get_if<double>(&value.is)) return number_text(*number);
  std::string out;
  if (const List* list = value.list()) {
    for (const Value& item : *list) out += (out.empty() ? "" : ", ") + to_text(item, true);
    return "[" + out + "]";
  }
  if (const Dict* dict = value.dict()) {
    for (const auto& [name, member] : dict->members)
      out += (out.empty() ? "" : ", ") + quote(name) + ": " + to_text(member, true);
    return "{" + out + "}";
  }
  if (std::holds_alternative<Value::None>(value.is)) return "None";
  return "<" + std::string(value.type()) + ">";
}

std::string to_json_text(const Value& value, int indent) {
  std::string out;
  write_json(value, indent, 0, out);
  return out;
}

}  // namespace retort::chat
