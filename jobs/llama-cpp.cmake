# llama.cpp includes this as the value of CMAKE_PROJECT_llama.cpp_INCLUDE. It leaves out the library of llama.cpp's
# command-line programs, which takes half of the time to compile and which llama-cpp-python never loads. An option on
# the command line has no effect, because llama-cpp-python's CMakeLists.txt forces it on.
set(LLAMA_BUILD_COMMON OFF)
