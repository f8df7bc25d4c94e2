# cmake -DPROGRAM=... -DARGUMENT=... [-DREPORT=...] -P expect_report.cmake: runs the program and
# requires that it fails with REPORT in its output, or, without REPORT, that it ends well. A crash, a
# missing program or another report is a failure of the test.
execute_process(COMMAND ${PROGRAM} ${ARGUMENT} RESULT_VARIABLE status OUTPUT_VARIABLE text
  ERROR_VARIABLE text)
if(DEFINED REPORT)
  if(NOT status MATCHES "^[1-9][0-9]*$" OR NOT text MATCHES "${REPORT}")
    message(FATAL_ERROR "expected a failure with '${REPORT}'; got status ${status} and:\n${text}")
  endif()
elseif(NOT status STREQUAL "0" OR NOT text MATCHES "ran to the end")
  message(FATAL_ERROR "expected a clean run; got status ${status} and:\n${text}")
endif()
