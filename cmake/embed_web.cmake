# cmake -DDIRECTORY=src/server/web -DOUTPUT=web_files_data.cpp -P embed_web.cmake
# Every file of DIRECTORY as bytes of a C++ source, with its content type and a tag of its content.
file(GLOB files RELATIVE ${DIRECTORY} ${DIRECTORY}/*)
list(SORT files)
set(arrays "")
set(table "")
set(n 0)
foreach(file ${files})
  if(file MATCHES "\\.html$")
    set(type "text/html; charset=utf-8")
  elseif(file MATCHES "\\.js$")
    set(type "text/javascript; charset=utf-8")
  elseif(file MATCHES "\\.css$")
    set(type "text/css; charset=utf-8")
  elseif(file MATCHES "\\.svg$")
    set(type "image/svg+xml")
  elseif(file MATCHES "\\.png$")
    set(type "image/png")
  elseif(file MATCHES "\\.webmanifest$")
    set(type "application/manifest+json")
  elseif(file MATCHES "\\.json$")
    set(type "application/json")
  else()
    continue()
  endif()
  file(READ ${DIRECTORY}/${file} hex HEX)
  file(SHA256 ${DIRECTORY}/${file} digest)
  string(SUBSTRING ${digest} 0 24 tag)
  string(REGEX REPLACE "(..)" "0x\\1," bytes "${hex}")
  string(APPEND arrays "const unsigned char kFile${n}[] = {${bytes}0};\n")
  string(APPEND table "    {\"/${file}\", \"${type}\", text(kFile${n}, sizeof kFile${n} - 1), \"\\\"${tag}\\\"\"},\n")
  math(EXPR n "${n} + 1")
endforeach()
if(n EQUAL 0)
  string(APPEND table "    {\"\", \"\", \"\", \"\"},\n")
endif()
file(WRITE ${OUTPUT}.new "// Made by cmake/embed_web.cmake.
#include \"server/web_files.h\"

namespace hadal::server {

namespace {

${arrays}
[[maybe_unused]] std::string_view text(const unsigned char* bytes, std::size_t n) {
  return {reinterpret_cast<const char*>(bytes), n};
}

}  // namespace

std::span<const WebFile> web_files() {
  static const WebFile files[] = {
${table}  };
  return files;
}

}  // namespace hadal::server
")
file(COPY_FILE ${OUTPUT}.new ${OUTPUT} ONLY_IF_DIFFERENT)
