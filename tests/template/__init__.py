"""Tests of the template as CloudFormation gets it. They need the environments of SAM and of cfn-lint."""
