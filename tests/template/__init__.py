"""Tests of the template as CloudFormation gets it, which need the environments of SAM and of cfn-lint."""
