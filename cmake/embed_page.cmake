# cmake -DDIRECTORY=src/train/report_page -DOUTPUT=report_page_data.cpp -P embed_page.cmake
# report.html with its style sheets and scripts in place of the elements that name them, as bytes of
# a C++ source.
file(READ ${DIRECTORY}/report.html page)
file(GLOB files RELATIVE ${DIRECTORY} ${DIRECTORY}/*.css ${DIRECTORY}/*.js)
foreach(file ${files})
  file(READ ${DIRECTORY}/${file} text)
  if(file MATCHES "\\.css$")
    set(element "<link rel=\"stylesheet\" href=\"${file}\">")
    set(inline "<style>\n${text}</style>")
  else()
    set(element "<script src=\"${file}\"></script>")
    set(inline "<script>\n${text}</script>")
  endif()
  string(FIND "${page}" "${element}" at)
  if(at EQUAL -1)
    message(FATAL_ERROR "report.html does not name ${file}: it wants ${element}")
  endif()
  string(REPLACE "${element}" "${inline}" page "${page}")
endforeach()
file(WRITE ${OUTPUT}.html "${page}")
file(READ ${OUTPUT}.html hex HEX)
string(REGEX REPLACE "(..)" "0x\\1," bytes "${hex}")
file(WRITE ${OUTPUT}.new "// Made by cmake/embed_page.cmake.
#include \"train/report.h\"

namespace hadal::train {

namespace {

const unsigned char kPage[] = {${bytes}0};

}  // namespace

std::string_view report_page() {
  return {reinterpret_cast<const char*>(kPage), sizeof kPage - 1};
}

}  // namespace hadal::train
")
file(COPY_FILE ${OUTPUT}.new ${OUTPUT} ONLY_IF_DIFFERENT)
